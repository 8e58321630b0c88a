"""Check params.yaml before any stage of its names, which DVC makes paths of."""

from cones.common.files import fresh_file
from cones.common.layout import CHECKED
from cones.common.process import run_stage
from cones.config.params import load_params


def main() -> None:
    load_params()
    with fresh_file(CHECKED) as temporary:
        temporary.write_text("params.yaml is sound\n", encoding="utf-8")  # always the same: what depends on it stays


if __name__ == "__main__":
    run_stage(main)
