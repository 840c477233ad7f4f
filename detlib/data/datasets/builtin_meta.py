"""Names, ids and colors of the categories of public datasets, and metadata made of them."""

import colorsys
from collections.abc import Iterable
from typing import Any

__all__ = [
    "ADE20K_SEM_SEG_CATEGORIES",
    "CITYSCAPES_CATEGORIES",
    "COCO_CATEGORIES",
    "COCO_PERSON_KEYPOINT_FLIP_MAP",
    "COCO_PERSON_KEYPOINT_NAMES",
    "KEYPOINT_CONNECTION_RULES",
    "categories_with_colors",
    "instance_metadata",
    "panoptic_metadata",
    "person_keypoint_metadata",
    "separated_metadata",
]

Category = dict[str, Any]

_COCO_THINGS = """
1 person, 2 bicycle, 3 car, 4 motorcycle, 5 airplane, 6 bus, 7 train, 8 truck, 9 boat, 10 traffic light,
11 fire hydrant, 13 stop sign, 14 parking meter, 15 bench, 16 bird, 17 cat, 18 dog, 19 horse, 20 sheep, 21 cow,
22 elephant, 23 bear, 24 zebra, 25 giraffe, 27 backpack, 28 umbrella, 31 handbag, 32 tie, 33 suitcase, 34 frisbee,
35 skis, 36 snowboard, 37 sports ball, 38 kite, 39 baseball bat, 40 baseball glove, 41 skateboard, 42 surfboard,
43 tennis racket, 44 bottle, 46 wine glass, 47 cup, 48 fork, 49 knife, 50 spoon, 51 bowl, 52 banana, 53 apple,
54 sandwich, 55 orange, 56 broccoli, 57 carrot, 58 hot dog, 59 pizza, 60 donut, 61 cake, 62 chair, 63 couch,
64 potted plant, 65 bed, 67 dining table, 70 toilet, 72 tv, 73 laptop, 74 mouse, 75 remote, 76 keyboard,
77 cell phone, 78 microwave, 79 oven, 80 toaster, 81 sink, 82 refrigerator, 84 book, 85 clock, 86 vase, 87 scissors,
88 teddy bear, 89 hair drier, 90 toothbrush
"""
_COCO_STUFF = """
92 banner, 93 blanket, 95 bridge, 100 cardboard, 107 counter, 109 curtain, 112 door-stuff, 118 floor-wood,
119 flower, 122 fruit, 125 gravel, 128 house, 130 light, 133 mirror-stuff, 138 net, 141 pillow, 144 platform,
145 playingfield, 147 railroad, 148 river, 149 road, 151 roof, 154 sand, 155 sea, 156 shelf, 159 snow, 161 stairs,
166 tent, 168 towel, 171 wall-brick, 175 wall-stone, 176 wall-tile, 177 wall-wood, 178 water-other,
180 window-blind, 181 window-other, 184 tree-merged, 185 fence-merged, 186 ceiling-merged, 187 sky-other-merged,
188 cabinet-merged, 189 table-merged, 190 floor-other-merged, 191 pavement-merged, 192 mountain-merged,
193 grass-merged, 194 dirt-merged, 195 paper-merged, 196 food-other-merged, 197 building-other-merged,
198 rock-merged, 199 wall-other-merged, 200 rug-merged
"""

_ADE20K = """
wall; building; sky; floor; tree; ceiling; road, route; bed; window; grass; cabinet; sidewalk, pavement; person;
earth, ground; door; table; mountain, mount; plant; curtain; chair; car; water; painting, picture; sofa; shelf; house;
sea; mirror; rug; field; armchair; seat; fence; desk; rock, stone; wardrobe, closet, press; lamp; tub; rail; cushion;
base, pedestal, stand; box; column, pillar; signboard, sign; chest of drawers, chest, bureau, dresser; counter; sand;
sink; skyscraper; fireplace; refrigerator, icebox; grandstand, covered stand; path; stairs; runway;
case, display case, showcase, vitrine; pool table, billiard table, snooker table; pillow; screen door, screen;
stairway, staircase; river; bridge, span; bookcase; blind, screen; coffee table;
toilet, can, commode, crapper, pot, potty, stool, throne; flower; book; hill; bench; countertop; stove;
palm, palm tree; kitchen island; computer; swivel chair; boat; bar; arcade machine; hovel, hut, hutch, shack, shanty;
bus; towel; light; truck; tower; chandelier; awning, sunshade, sunblind; street lamp; booth; tv; plane; dirt track;
clothes; pole; land, ground, soil; bannister, banister, balustrade, balusters, handrail;
escalator, moving staircase, moving stairway; ottoman, pouf, pouffe, puff, hassock; bottle;
buffet, counter, sideboard; poster, posting, placard, notice, bill, card; stage; van; ship; fountain;
conveyer belt, conveyor belt, transporter; canopy; washer, automatic washer, washing machine; plaything, toy; pool;
stool; barrel, cask; basket, handbasket; falls; tent; bag; minibike, motorbike; cradle; oven; ball; food, solid food;
step, stair; tank, storage tank; trade name; microwave; pot; animal; bicycle; lake; dishwasher; screen;
blanket, cover; sculpture; hood, exhaust hood; sconce; vase; traffic light; tray; trash can; fan; pier; crt screen;
plate; monitor; bulletin board; shower; radiator; glass, drinking glass; clock; flag
"""


def categories_with_colors(entries: Iterable[tuple[int, str, bool]]) -> list[Category]:
    """Return categories in COCO's panoptic form, each with a color unlike those of its neighbours.

    Args:
        entries: id, name and whether it is a thing, of each category.
    """
    categories = []
    for index, (category_id, name, is_thing) in enumerate(entries):
        # Steps of the golden ratio never come close to a recent hue.
        hue, value = index * 0.618034 % 1, (1.0, 0.75, 0.5)[index % 3]
        color = [round(255 * channel) for channel in colorsys.hsv_to_rgb(hue, 0.8, value)]
        categories.append({"id": category_id, "name": name, "isthing": int(is_thing), "color": color})
    return categories


def _parse(table: str) -> list[tuple[int, str]]:
    rows = [entry.strip().split(" ", 1) for entry in table.split(",")]
    return [(int(category_id), name) for category_id, name in rows]


COCO_CATEGORIES = categories_with_colors(
    [(*row, True) for row in _parse(_COCO_THINGS)] + [(*row, False) for row in _parse(_COCO_STUFF)]
)

# The 19 classes that count, in the order of train ids, with the label ids of the dataset.
_CITYSCAPES_STUFF = """
7 road, 8 sidewalk, 11 building, 12 wall, 13 fence, 17 pole, 19 traffic light, 20 traffic sign, 21 vegetation,
22 terrain, 23 sky
"""
_CITYSCAPES_THINGS = """
24 person, 25 rider, 26 car, 27 truck, 28 bus, 31 train, 32 motorcycle, 33 bicycle
"""
CITYSCAPES_CATEGORIES = [
    {**category, "trainId": index}
    for index, category in enumerate(
        categories_with_colors(
            [(*row, False) for row in _parse(_CITYSCAPES_STUFF)] + [(*row, True) for row in _parse(_CITYSCAPES_THINGS)]
        )
    )
]

# The 150 classes of the scene parsing challenge of 2016, in its order, with their synonyms.
ADE20K_SEM_SEG_CATEGORIES = [" ".join(name.split()) for name in _ADE20K.split(";")]

_PAIRED_KEYPOINTS = ("eye", "ear", "shoulder", "elbow", "wrist", "hip", "knee", "ankle")
COCO_PERSON_KEYPOINT_NAMES = ("nose", *(f"{side}_{part}" for part in _PAIRED_KEYPOINTS for side in ("left", "right")))
COCO_PERSON_KEYPOINT_FLIP_MAP = tuple((f"left_{part}", f"right_{part}") for part in _PAIRED_KEYPOINTS)

# Each is a line to draw: two keypoints and an RGB color. Blue is the left of the person, orange the right.
_LEFT, _RIGHT, _MIDDLE = (51, 153, 255), (255, 128, 0), (102, 204, 0)
KEYPOINT_CONNECTION_RULES = [
    ("left_ear", "left_eye", _LEFT),
    ("right_ear", "right_eye", _RIGHT),
    ("left_eye", "nose", _LEFT),
    ("nose", "right_eye", _RIGHT),
    ("left_shoulder", "right_shoulder", _MIDDLE),
    ("left_shoulder", "left_elbow", _LEFT),
    ("right_shoulder", "right_elbow", _RIGHT),
    ("left_elbow", "left_wrist", _LEFT),
    ("right_elbow", "right_wrist", _RIGHT),
    ("left_hip", "right_hip", _MIDDLE),
    ("left_hip", "left_knee", _LEFT),
    ("right_hip", "right_knee", _RIGHT),
    ("left_knee", "left_ankle", _LEFT),
    ("right_knee", "right_ankle", _RIGHT),
]


def instance_metadata(categories: list[Category]) -> dict[str, Any]:
    """Return metadata for detection: the things among the categories."""
    things = [category for category in categories if category["isthing"]]
    return {
        "thing_dataset_id_to_contiguous_id": {category["id"]: index for index, category in enumerate(things)},
        "thing_classes": [category["name"] for category in things],
        "thing_colors": [category["color"] for category in things],
    }


def person_keypoint_metadata() -> dict[str, Any]:
    """Return metadata for the keypoints of COCO's persons."""
    return {
        "thing_classes": ["person"],
        "keypoint_names": COCO_PERSON_KEYPOINT_NAMES,
        "keypoint_flip_map": COCO_PERSON_KEYPOINT_FLIP_MAP,
        "keypoint_connection_rules": KEYPOINT_CONNECTION_RULES,
    }


def panoptic_metadata(categories: list[Category]) -> dict[str, Any]:
    """Return metadata in which things and stuff share one range of contiguous ids, 0 to K - 1.

    Names and colors are listed under both kinds, so that either list can be indexed with any id.
    """
    names = [category["name"] for category in categories]
    colors = [category["color"] for category in categories]
    metadata: dict[str, Any] = {}
    for kind, is_thing in (("thing", 1), ("stuff", 0)):
        metadata[f"{kind}_dataset_id_to_contiguous_id"] = {
            category["id"]: index for index, category in enumerate(categories) if category["isthing"] == is_thing
        }
        metadata[f"{kind}_classes"] = names
        metadata[f"{kind}_colors"] = colors
    return metadata


def separated_metadata(categories: list[Category]) -> dict[str, Any]:
    """Return metadata in which things count from 0, and stuff from 1 after a class 0 for all things."""
    stuff = [category for category in categories if not category["isthing"]]
    return {
        **instance_metadata(categories),
        "stuff_dataset_id_to_contiguous_id": {0: 0, **{s["id"]: index for index, s in enumerate(stuff, start=1)}},
        "stuff_classes": ["things", *(category["name"] for category in stuff)],
        "stuff_colors": [[82, 18, 128], *(category["color"] for category in stuff)],
    }
