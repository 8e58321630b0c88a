"""Compile params.yaml into the plan files that the other stages read; all mistakes in it are told here, at once."""

from cones.common.process import run_stage
from cones.config.params import load_params
from cones.config.plan import write_plan


def main() -> None:
    print(f"{write_plan(load_params())} plans")


if __name__ == "__main__":
    run_stage(main)
