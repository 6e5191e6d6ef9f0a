"""HTTP: parse, call one service, return. One file per noun."""
