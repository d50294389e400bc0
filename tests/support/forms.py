"""The steps of forms of a cell, written again from the step of the cell itself."""


def with_whole_matrix(np, w_h, gates):
    """The blocks [n, H/n, G*H/n] of heads as a matrix [H, G*H] that is zero elsewhere."""
    heads, units, _ = w_h.shape
    rows = []
    for head, block in enumerate(w_h):
        of_gate = [block[:, g * units : (g + 1) * units] for g in range(gates)]
        rows.append(np.concatenate([z * float(head == k) for z in of_gate for k in range(heads)], 1))
    return np.concatenate(rows)


def of_heads(plain, gates):
    """The step of a cell whose heads read only themselves."""
    return lambda np, p, s, x: plain(np, {**p, "w_h": with_whole_matrix(np, p["w_h"], gates)}, s, x)


def projected(plain):
    """The step of an LSTM whose output is multiplied by W_p."""

    def step(np, p, s, x):
        new = plain(np, p, s, x)
        return {**new, "h": new["h"] @ p["w_p"]}

    return step
