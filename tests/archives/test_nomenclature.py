from stssl.archives.nomenclature import CLASSES_19, CLC, LABELS_19, LABELS_43, SEASONS, TO_19


def test_counts():
    assert (len(LABELS_43), len(LABELS_19), len(TO_19)) == (43, 19, 32)
    assert len(set(LABELS_43) - set(TO_19)) == 11


def test_every_class_is_mapped_by_a_name_that_exists():
    assert set(TO_19) <= set(LABELS_43)
    assert set(TO_19.values()) == set(LABELS_19)
    assert sum(map(len, CLASSES_19.values())) == len(TO_19)


def test_codes_ascend_and_are_of_level_three():
    assert list(CLC.values()) == sorted(CLC.values())
    assert all(111 <= code <= 523 for code in CLC.values())


def test_seasons_are_meteorological():
    assert [SEASONS[month] for month in (12, 2, 3, 5, 6, 8, 9, 11)] == [
        *("winter", "winter", "spring", "spring"),
        *("summer", "summer", "autumn", "autumn"),
    ]
