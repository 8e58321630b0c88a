"""Check params.yaml before any stage of its names, which DVC makes paths of."""

from cones.config import load_params
from cones.files import fresh_file
from cones.layout import CHECKED
from cones.process import run_stage


def main() -> None:
    load_params()
    with fresh_file(CHECKED) as temporary:
        temporary.write_text("params.yaml is sound\n", encoding="utf-8")  # always the same: what depends on it stays


if __name__ == "__main__":
    run_stage(main)
