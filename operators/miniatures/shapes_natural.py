"""Kinds of objects that people do not make. Each function draws one, with the differences that its kind allows."""

from __future__ import annotations

import numpy as np

from labelmill.operators.miniatures.shapes import (
    ALT,
    BEAK,
    CORE,
    CREAM,
    EMPTY,
    INK,
    LEAF,
    MAIN,
    WOOD,
    Drawing,
    Sheet,
    ellipse,
    smooth,
    starred,
)


def tree(sheet: Sheet) -> None:
    sheet.fill(WOOD, [(44, 60), (56, 60), (59, 98), (41, 98)])
    if sheet.chance():
        for top, bottom, half in ((2, 34, 22), (18, 58, 31), (38, 80, 39)):
            sheet.fill(MAIN, [(50, top), (50 + half, bottom), (50 - half, bottom)])
        sheet.fill(ALT, [(50, 38), (64, 58), (36, 58)])
    else:
        sheet.disc(MAIN, 50, 42, 24)
        for turn in range(0, 360, 60):
            angle = np.radians(turn + sheet.vary(-12, 12))
            sheet.disc(MAIN, 50 + 22 * np.cos(angle), 38 + 20 * np.sin(angle), sheet.vary(15, 18))
        for x, y in ((38, 30), (60, 26), (56, 50)):
            sheet.disc(ALT, x, y, 5)


def flower(sheet: Sheet) -> None:
    sheet.line(LEAF, [(50, 40), (52, 70), (50, 97)], 6)
    sheet.disc(LEAF, 64, 78, 14, 6, turn=-35)
    if sheet.chance(0.6):
        sheet.disc(LEAF, 37, 84, 14, 6, turn=35)
    petals = int(sheet.rng.integers(5, 9))
    long, wide = sheet.vary(15, 17), 76 / petals + 2
    for i in range(petals):
        angle = 2 * np.pi * (i + 0.5) / petals
        x, y = 50 + 19 * np.cos(angle), 34 + 19 * np.sin(angle)
        sheet.disc(MAIN, x, y, long, wide, turn=float(np.degrees(angle)))
        sheet.line(ALT, [(50, 34), (x, y)], 2)
    sheet.disc(CORE, 50, 34, sheet.vary(9, 11))


def mushroom(sheet: Sheet) -> None:
    wide = sheet.vary(11, 16)
    sheet.fill(
        CREAM,
        smooth(
            [
                (50 - wide, 50),
                (50 + wide, 50),
                (50 + wide, 75),
                (50 + wide + 4, 95),
                (50, 98),
                (50 - wide - 4, 95),
                (50 - wide, 75),
            ]
        ),
    )
    sheet.fill(
        MAIN, smooth([(3, 56), (6, 36), (24, 12), (50, 5), (76, 12), (94, 36), (97, 56), (75, 61), (50, 62), (25, 61)])
    )
    for x, y, radius in ((30, 30, 8), (58, 20, 7), (76, 42, 8), (50, 45, 6), (16, 48, 5)):
        sheet.disc(CREAM, x + sheet.vary(-3, 3), y + sheet.vary(-2, 2), radius)


def fish(sheet: Sheet) -> None:
    fork = sheet.vary(10, 18)
    sheet.fill(ALT, [(62, 34), (38, 8 + fork / 2), (34, 34)])
    sheet.fill(ALT, [(52, 68), (38, 88 - fork / 2), (34, 66)])
    sheet.fill(MAIN, [(26, 50), (2, 22), (fork, 50), (2, 78)])
    belly = sheet.vary(21, 27)
    sheet.fill(
        MAIN,
        smooth([(18, 50), (40, 50 - belly), (72, 50 - belly), (97, 48), (94, 56), (72, 50 + belly), (40, 50 + belly)]),
    )
    sheet.line(ALT, ellipse(60, 50, 12, 20, -65, 65, n=10), 3.5)
    sheet.disc(CREAM, 82, 43, 6)
    sheet.disc(INK, 83, 43, 3)


def bird(sheet: Sheet) -> None:
    for x in (46, 56):
        sheet.line(BEAK, [(x, 76), (x - 2, 96), (x + 7, 96)], 3.5)
    lift = sheet.vary(-6, 6)
    sheet.fill(MAIN, [(30, 52), (1, 50 + lift), (0, 64 + lift), (8, 70 + lift), (34, 72)])
    sheet.fill(MAIN, smooth([(18, 58), (36, 44), (56, 38), (76, 48), (78, 64), (64, 79), (44, 81), (26, 72)]))
    sheet.fill(BEAK, [(86, 24), (100, 32), (86, 38)])
    sheet.disc(MAIN, 75, 30, 17)
    sheet.fill(MAIN, [(60, 34), (58, 60), (78, 60), (88, 40)])
    raised = sheet.vary(4, 24) if sheet.chance(0.5) else 70.0
    sheet.fill(ALT, smooth([(66, 54), (56, 46), (34, (raised + 50) / 2), (14, raised), (30, 64), (52, 68)]))
    sheet.disc(CREAM, 80, 27, 4.5)
    sheet.disc(INK, 81, 27, 2.8)


def butterfly(sheet: Sheet) -> None:
    tip, low = sheet.vary(5, 12), sheet.vary(86, 94)
    upper = smooth([(51, 46), (62, 20), (88, tip), (98, 22), (90, 46), (62, 54)])
    lower = smooth([(51, 52), (72, 54), (90, 66), (84, low - 6), (68, low), (56, 74)])
    for wing in (upper, lower):
        sheet.mirrored(MAIN, [(float(x), float(y)) for x, y in wing])
    for x, y, radius in ((82, 28, 7), (72, 72, 7)):
        sheet.disc(ALT, x, y, radius)
        sheet.disc(ALT, 100 - x, y, radius)
    for side in (-1, 1):
        sheet.line(INK, [(50, 26), (50 + side * 6, 14), (50 + side * 12, 8)], 2.5)
    sheet.disc(INK, 50, 52, 5, 29)


def cat(sheet: Sheet) -> None:
    bend = sheet.vary(-6, 6)
    sheet.line(MAIN, smooth([(66, 92), (90, 88), (94 + bend / 2, 66), (84 + bend, 46)])[:16], 8)
    sheet.fill(MAIN, smooth([(30, 96), (22, 76), (32, 50), (50, 42), (66, 50), (80, 78), (74, 96), (52, 98)]))
    for x in (36, 52):
        sheet.line(ALT, [(x, 76), (x, 95)], 3)
    sheet.mirrored(MAIN, [(20, 26), (19, 1), (42, 14)], x=43)
    sheet.mirrored(CREAM, [(23.5, 18), (23, 8), (33, 14)], x=43)
    sheet.disc(MAIN, 43, 30, 26, 22)
    for x in (33, 53):
        sheet.disc(CREAM, x, 27, 6, 5)
        sheet.disc(INK, x, 27, 2.2, 4.5)
    sheet.fill(BEAK, [(39.5, 35), (46.5, 35), (43, 39)])
    for side in (-1, 1):
        sheet.line(INK, [(43 + side * 8, 39), (43 + side * 30, 36)], 1.5)
        sheet.line(INK, [(43 + side * 8, 42), (43 + side * 28, 45)], 1.5)


def apple(sheet: Sheet) -> None:
    low = sheet.vary(90, 97)
    sheet.fill(
        MAIN,
        smooth(
            [
                (50, 29),
                (66, 22),
                (86, 28),
                (95, 50),
                (86, 78),
                (66, low),
                (50, low - 4),
                (34, low),
                (14, 78),
                (5, 50),
                (14, 28),
                (34, 22),
            ]
        ),
    )
    sheet.line(WOOD, [(50, 32), (52, 16), (57, 5)], 5)
    if sheet.chance(0.8):
        sheet.fill(LEAF, smooth([(54, 17), (66, 5), (86, 4), (76, 17)]))
    if sheet.chance(0.3):
        sheet.disc(EMPTY, 99, 52, 17)
    else:
        sheet.disc(ALT, 28, 46, 6, 12, turn=20)


def star(sheet: Sheet) -> None:
    inner = sheet.vary(20, 25)
    sheet.fill(MAIN, starred(50, 52, 50, inner, 5))
    if sheet.chance():
        sheet.fill(ALT, starred(50, 52, 24, inner * 0.48, 5))


NATURAL: dict[str, Drawing] = {
    "tree": tree,
    "flower": flower,
    "mushroom": mushroom,
    "fish": fish,
    "bird": bird,
    "butterfly": butterfly,
    "cat": cat,
    "apple": apple,
    "star": star,
}
