from tests.flows.attacks import ATTACKS, PAGE, functions_in, page


def test_the_page_is_what_the_tests_show() -> None:
    assert PAGE.read_text() == page()


def test_every_attack_is_shown_by_a_test_that_exists() -> None:
    for one in ATTACKS.values():
        assert one.test in functions_in(one.file), one


def test_every_test_expects_what_the_page_says() -> None:
    """It takes check and error from the list, by the attack's name, or has both of them in its own words."""
    for name, one in ATTACKS.items():
        source, error = functions_in(one.file)[one.test], one.error.partition(":")[0]
        said = [*one.by, *([] if error == "none" else [error])]
        assert f'"{name}"' in source or [words for words in said if words not in source] == [], one
