"""Train a built-in base model on the generated world's base concepts: clip, glip, judge or sd (`make pretrain`)."""

from importlib import import_module

from cones.common.process import run_stage


def main(kind: str) -> None:
    import_module(f"cones.pretrain.{kind}").main()


if __name__ == "__main__":
    run_stage(main)
