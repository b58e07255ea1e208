"""`python -m circuit_tracer` is `circuit-tracer`; so is `torchrun -m circuit_tracer`, with several processes."""

from circuit_tracer.cli.main import main

if __name__ == "__main__":
    main()
