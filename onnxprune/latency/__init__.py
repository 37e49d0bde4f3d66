"""Time as a function of widths: what single layers take, and which widths a budget of latency leaves."""
