"""`prefscale serve`: a reward model for other processes."""

import argparse
import os

KEY_NAME = "PREFSCALE_KEY"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


def add_serve(command: argparse.ArgumentParser) -> None:
    """Add what the command takes, and what it does."""
    command.add_argument("model", help="folder or hub name of a multi-scale reward model or adapter")
    command.add_argument("--host", default=LOOPBACK[0], help="address to listen at (127.0.0.1, this machine alone)")
    command.add_argument("--port", type=int, default=8000, help="port (8000)")
    command.add_argument("--batch-size", type=int, default=16, help="most rows of a forward pass (16)")
    command.add_argument("--max-length", type=int, help="most tokens of a row (the model's context length)")
    command.add_argument("--device", help="where the model goes, such as cuda:1 (the first GPU, or the CPU)")
    command.add_argument(
        "--most-rows",
        type=int,
        default=256,
        help="most rows of waiting requests that are scored together (256); 0 to score each request alone",
    )
    command.set_defaults(run=_serve)
    command.epilog = f"The key that clients must give is read from the environment, {KEY_NAME}."


def _serve(args: argparse.Namespace) -> None:
    from ..training.options import check_number

    check_number("--port", args.port, 1, 65535, whole=True)
    check_number("--most-rows", args.most_rows, 0, whole=True)
    key = os.environ.get(KEY_NAME) or None
    if args.host not in LOOPBACK and key is None:
        raise ValueError(f"`--host {args.host}` opens the server to a network. Set {KEY_NAME} to a key for it.")
    try:
        import uvicorn

        from ..serving.app import make_app
    except ImportError as error:
        raise ValueError(f"The server needs {error.name}. Install it: pip install 'prefscale[serve]'.") from None
    from ..reward.scorer import RewardFunction

    reward = RewardFunction(args.model, batch_size=args.batch_size, max_length=args.max_length, device=args.device)
    app = make_app(reward, args.model, key, args.most_rows)
    print(
        f"Serving '{args.model}' at http://{args.host}:{args.port}; its API is described there under /docs.",
        flush=True,
    )
    uvicorn.run(app, host=args.host, port=args.port, log_level="warning")
