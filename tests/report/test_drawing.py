"""Names of points in a picture."""

import itertools

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from bench.report.drawing import logarithmic, name_points

# Two in one place, two in corners, two side by side
POINTS = [
    (1.0, 30.0, "batch 8"),
    (1.0, 30.0, "batch 32"),
    (0.0, 3.0, "batch 1"),
    (4.0, 300.0, "batch 64"),
    (2.0, 100.0, "batch 2"),
    (2.3, 100.0, "batch 4"),
]


def test_every_point_has_a_name_that_covers_no_other() -> None:
    figure = Figure(figsize=(4.5, 3.6))
    canvas, axis = FigureCanvasAgg(figure), figure.subplots()
    axis.scatter([x for x, _, _ in POINTS], [y for _, y, _ in POINTS], s=60)
    logarithmic(axis, "y")
    name_points(axis, POINTS)
    canvas.draw()
    assert [text.get_text() for text in axis.texts] == [name for _, _, name in POINTS]
    boxes = [text.get_window_extent() for text in axis.texts]
    assert not [1 for one, other in itertools.combinations(boxes, 2) if one.overlaps(other)]
    centres = [axis.transData.transform((x, y)) for x, y, _ in POINTS]
    assert not [1 for box in boxes for across, up in centres if box.contains(across, up)]


def test_a_crowd_has_as_many_names_as_there_is_room_for() -> None:
    axis = Figure(figsize=(4.5, 3.6)).subplots()
    crowd = [(1 + i * 1e-6, 1.0, f"batch {i}") for i in range(9)] + [(2.0, 2.0, "far")]
    axis.scatter([x for x, _, _ in crowd], [y for _, y, _ in crowd])
    name_points(axis, crowd)
    names = [text.get_text() for text in axis.texts]
    assert names[-1] == "far"
    assert 2 <= len(names) < len(crowd)


def test_a_wider_figure_has_room_for_more_names() -> None:
    """As measured: memory in MiB and tokens/s of 12 cells, one panel."""
    cells = {
        "sdpa_packed loop": [(260, 308), (402, 215)],
        "sdpa_packed compiled": [(346, 360), (489, 251)],
        "eager loop": [(329, 298), (443, 212)],
        "eager compiled": [(361, 361), (507, 258)],
        "sdpa loop": [(261, 213), (399, 165)],
        "sdpa compiled": [(355, 229), (497, 176)],
    }
    points = [(x, y, name) for name, places in cells.items() for x, y in places]
    named = []
    for width_in in (4.5, 9):
        axis = Figure(figsize=(width_in, 3.6)).subplots()
        axis.scatter([x for x, _, _ in points], [y for _, y, _ in points])
        logarithmic(axis, "y")
        name_points(axis, points)
        named.append(len(axis.texts))
    assert named[0] < named[1] == len(points)
