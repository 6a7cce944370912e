"""Linear assignment (Hungarian algorithm): at most one candidate per object, at minimum cost.

Two different rules; neither approximates the other:

    hungarian   the assignment of the largest total quality; Kuhn 1955, by shortest augmenting paths with
                potentials (Jonker and Volgenant 1987; Crouse 2016, "On implementing 2D rectangular assignment
                algorithms", as in scipy.optimize.linear_sum_assignment)
    top_one     each object gets its best candidate; a contested one goes to the object of higher quality

Both run inside the training step, on either backend, under XLA and JAX's jit. Letters: B images, M objects,
A candidates of all levels. No gradient flows through either.
"""

from keras import ops

from kgarden.ops.gather import gather

OUTSIDE = -1.0


def hungarian(quality, allowed, outside=OUTSIDE):
    """Computes the one-to-one assignment of largest total quality.

    Pairs that are not allowed have quality `outside` and are dropped afterwards, which leaves the object
    unmatched. The assignment therefore maximises the sum of (quality - outside) over allowed pairs. With -1
    (DeFCN, arXiv:2012.03544), below every quality, it practically maximises the number of matched objects;
    with 0 an object may stay unmatched although it has a free candidate.

    Exact up to float32 rounding: assignments whose totals differ by less than about 1e-6 count as ties.

    Args:
        quality: (B, M, A) >= `outside` where allowed; A static.
        allowed: (B, M, A) bool; False throughout for padded objects.
        outside: quality of a pair that is not allowed.
    Returns:
        (B, M) int32, the candidate of each object, or -1.
    """
    if quality.shape[1] == 0 or quality.shape[2] == 0:
        return ops.zeros(ops.shape(quality)[:2], "int32") - 1
    quality = ops.stop_gradient(ops.cast(quality, "float32"))
    cost = ops.where(allowed, outside - quality, float("inf"))
    state = _start(cost)

    def unfinished(*state):
        return ops.any(_is_waiting(state[0]))

    return _as_candidates(ops.while_loop(unfinished, lambda *state: _serve_one(cost, *state), state)[0])


def top_one(quality, allowed):
    """Assigns to each object its best candidate; a contested one goes to the object of higher quality.

    Other objects get none, not their second choice. Ties go to the lower index, of candidates
    and of objects.

    Args:
        quality: (B, M, A).
        allowed: (B, M, A) bool.
    Returns:
        (B, M) int32, the candidate of each object, or -1.
    """
    if quality.shape[1] == 0 or quality.shape[2] == 0:
        return ops.zeros(ops.shape(quality)[:2], "int32") - 1
    quality = ops.where(allowed, ops.stop_gradient(ops.cast(quality, "float32")), float("-inf"))
    best, has_candidate = ops.max(quality, axis=2), ops.any(allowed, axis=2)
    choice = ops.cast(ops.argmax(quality, axis=2), "int32")
    return ops.where(_keeps(choice, best, has_candidate), choice, -1)


def objects_of(assigned, num_candidates):
    """Inverts an assignment: the object of each candidate.

    Args:
        assigned: (B, M) int32, candidate of each object, or -1; no candidate twice.
        num_candidates: A.
    Returns:
        (B, A) int32, object of each candidate, or -1.
    """
    batch, objects = ops.shape(assigned)[0], assigned.shape[1]
    image = ops.broadcast_to(ops.arange(batch, dtype="int32")[:, None], ops.shape(assigned))
    slot = ops.where(assigned >= 0, assigned, num_candidates)  # the last slot is discarded
    where = ops.reshape(ops.stack([image, slot], axis=-1), (-1, 2))
    object_of_row = ops.broadcast_to(ops.arange(objects, dtype="int32"), ops.shape(assigned))
    empty = ops.zeros((batch, num_candidates + 1), "int32") - 1
    return ops.scatter_update(empty, where, ops.reshape(object_of_row, (-1,)))[:, :num_candidates]


def _keeps(choice, best, wants):
    """Masks the objects that keep their choice: the best of those with the same choice.   (B, M) bool."""
    rank = ops.arange(choice.shape[1])
    rival = (choice[:, :, None] == choice[:, None, :]) & wants[:, None, :]
    better = (best[:, None, :] > best[:, :, None]) | (
        (best[:, None, :] == best[:, :, None]) & (rank[None, :] < rank[:, None])
    )
    return wants & ~ops.any(rival & better, axis=2)


# --- shortest augmenting paths ------------------------------------------------------------------------------
#
# Costs are minimised. Every object also has a private option "none" of cost 0, so that a path can
# always end. `column` (B, M) holds candidates, WAITING or NONE; `row_of` (B, A) the object of each candidate
# or -1; `u` (B, M) and `v` (B, A) are the potentials: cost - u - v >= 0 everywhere, 0 on what is assigned.

WAITING, NONE = -1, -2


def _is_waiting(column):
    return column == WAITING


def _as_candidates(column):
    return ops.maximum(column, -1)


def _start(cost):
    """Assigns uncontested cheapest candidates; objects with a contested one stay WAITING."""
    cheapest = ops.min(cost, axis=2)
    choice = ops.cast(ops.argmin(cost, axis=2), "int32")
    u = ops.minimum(cheapest, 0.0)
    wants = cheapest < 0
    column = ops.where(_keeps(choice, -cheapest, wants), choice, WAITING)
    column = ops.where(wants, column, NONE)
    return column, objects_of(ops.maximum(column, -1), cost.shape[2]), u, ops.zeros_like(cost[:, 0])


def _serve_one(cost, column, row_of, u, v):
    """Assigns the first waiting object of every image along the shortest augmenting path."""
    waits = ops.any(_is_waiting(column), axis=1)  # (B,)
    root = ops.cast(ops.argmax(_is_waiting(column), axis=1), "int32")
    tree = _shortest_path(cost, column, row_of, u=u, v=v, root=root, waits=waits)
    u, v = _new_potentials(column, u, v, root=root, waits=waits, tree=tree)
    column = _move_along(column, row_of, root, waits=waits, tree=tree)
    return column, objects_of(ops.maximum(column, -1), cost.shape[2]), u, v


def _shortest_path(cost, column, row_of, u, v, root, waits):
    """Dijkstra from the root, over objects, until a free candidate or an object's "none" is nearest.

    Returns:
        distance (B, A), parent (B, A) object from which a candidate was reached, scanned (B, A) bool,
        scanned_row (B, M) bool, length (B,), end (B,) free candidate or -1, leaver (B,) object that moves
        to its "none" where end is -1.
    """
    infinity = ops.full_like(v, float("inf"))
    nowhere = ops.zeros_like(root) - 1
    never = ops.zeros_like(v, dtype="bool")
    state = (
        waits,  # searching
        root,  # object whose candidates come next
        ops.zeros_like(v[:, 0]),  # its distance
        infinity,
        ops.zeros_like(row_of),
        never,
        ops.zeros_like(u, dtype="bool"),
        ops.full_like(v[:, 0], float("inf")),  # length of the shortest path to a "none" so far
        nowhere,  # ... and the object it belongs to
        ops.zeros_like(v[:, 0]),
        nowhere,
    )

    def searching(*state):
        return ops.any(state[0])

    def scan(busy, row, at, distance, parent, scanned, scanned_row, to_none, leaver, length, end):
        scanned_row = scanned_row | (busy[:, None] & _one_hot(row, u.shape[1]))
        of_row = gather(u, row)
        reach = at - of_row + 0.0
        nearer = busy & (reach < to_none)
        to_none, leaver = ops.where(nearer, reach, to_none), ops.where(nearer, row, leaver)

        costs = gather(cost, row)
        through = costs + (at - of_row)[:, None] - v
        nearer = busy[:, None] & ~scanned & (through < distance)
        distance = ops.where(nearer, through, distance)
        parent = ops.where(nearer, row[:, None], parent)

        open_distance = ops.where(scanned, float("inf"), distance)
        nearest = ops.cast(ops.argmin(open_distance, axis=1), "int32")
        least = ops.min(open_distance, axis=1)
        occupant = gather(row_of, nearest)
        ends_in_none = to_none <= least
        ends = ends_in_none | (occupant < 0)
        length = ops.where(busy, ops.where(ends_in_none, to_none, least), length)
        end = ops.where(busy & ends & ~ends_in_none, nearest, end)
        goes_on = busy & ~ends
        scanned = scanned | (goes_on[:, None] & _one_hot(nearest, v.shape[1]))
        row, at = ops.where(goes_on, occupant, row), ops.where(goes_on, least, at)
        return goes_on, row, at, distance, parent, scanned, scanned_row, to_none, leaver, length, end

    final = ops.while_loop(searching, scan, state)
    return dict(
        zip(
            ("distance", "parent", "scanned", "scanned_row", "leaver", "length", "end"),
            (*final[3:7], *final[8:]),
            strict=True,
        )
    )


def _new_potentials(column, u, v, root, waits, tree):
    """Updates the potentials so that the reduced cost of the path is 0."""
    length = ops.where(waits, tree["length"], 0.0)[:, None]
    at = gather(tree["distance"], ops.maximum(column, 0))  # of each object's candidate
    at = ops.where(_one_hot(root, u.shape[1]), 0.0, at)
    u = ops.where(tree["scanned_row"], u + length - at, u)
    return u, ops.where(tree["scanned"], v + tree["distance"] - length, v)


def _move_along(column, row_of, root, waits, tree):
    """Reassigns candidates along the path, from its end back to the root."""
    into_none = waits & (tree["end"] < 0)
    freed = gather(column, ops.maximum(tree["leaver"], 0))
    leaver = _one_hot(tree["leaver"], column.shape[1]) & into_none[:, None]
    column = ops.where(leaver, NONE, column)
    to_give = ops.where(into_none, freed, tree["end"])
    state = (waits & (to_give >= 0), to_give, column)  # a root that moves to its "none" frees nothing

    def walking(walks, to_give, column):
        return ops.any(walks)

    def step(walks, to_give, column):
        parent = gather(tree["parent"], ops.maximum(to_give, 0))
        had = gather(column, parent)
        takes = _one_hot(parent, column.shape[1]) & walks[:, None]
        column = ops.where(takes, to_give[:, None], column)
        return walks & (parent != root), ops.where(walks, had, to_give), column

    return ops.while_loop(walking, step, state)[2]


def _one_hot(index, length):
    """(B,) -> (B, length) bool; all False where the index is -1."""
    return ops.arange(length, dtype="int32")[None, :] == index[:, None]
