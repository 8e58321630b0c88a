"""Medical volumes: DICOM series and NIfTI files, cut into pictures with the lesions that their labels mark."""
