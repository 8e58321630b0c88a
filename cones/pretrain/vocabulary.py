"""General words for the built-in tokenizer, so that names it never saw in a caption still split into few tokens."""

GENERAL_WORDS = """
a an the of in on at with and or not is are this that there it its to from for by as one two three many some no
photo picture image drawing painting scan slice view crop close up bad good blurry bright dark small large big tiny
medical microscope microscopic x-ray ct mr mri ultrasound histology pathology radiology stain tissue cell cells blood
red white platelet platelets rbc wbc lesion tumour tumor nodule polyp cyst fracture organ liver kidney lung heart brain
spleen bone skin eye retina nucleus membrane bacteria virus healthy normal abnormal disease benign malignant
cat dog bird fish horse cow sheep duck toy teapot vase cup bottle chair table book phone shoe bag hat car bus truck
train bike boat plane house tree flower leaf fruit apple orange banana person man woman child face hand
red orange yellow green cyan blue purple pink brown white black grey gray dark light pale colour color
circle oval square triangle star cross ring crescent heart arrow flower blob shape object thing round long short thin
plain striped dotted checkered grainy shaded banded smooth rough texture pattern background wood metal glass stone cloth
left right top bottom centre center middle front back inside outside edge corner
"""
