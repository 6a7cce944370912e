import pytest

from tfrecords.labels import read_labels
from tfrecords.schema import DataError

WANTED = [{"id": 1, "name": "traffic light"}, {"id": 7, "name": "it's a cat"}]
PBTXT = """# a label map
item {
  name: "/m/015qff"  # as Open Images names it
  id: 1
  display_name: "traffic light"
}
item: { id: 7 name: 'it\\'s a cat'
  keypoints { id: 3 label: "nose }" } }
"""


@pytest.mark.parametrize(
    "name,content",
    [
        ("a.pbtxt", PBTXT),
        ("a.json", '{"7": "it\'s a cat", "1": "traffic light"}'),
        ("a.json", '{"it\'s a cat": 7, "traffic light": 1}'),
        ("a.json", '[{"name": "it\'s a cat", "id": 7}, {"name": "traffic light ", "id": "1"}]'),
        ("a.json", '{"categories": [{"name": "it\'s a cat", "id": 7}, {"name": "traffic light", "id": 1}]}'),
        ("a.csv", "7,it's a cat\n1,traffic light\n"),
        ("a.csv", '\ufeffid,name\r\n1,traffic light\r\n7,"it\'s a cat"\r\n'),
        ("a.csv", "name,id\nit's a cat,7\ntraffic light,1\n"),
    ],
)
def test_forms(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_labels(tmp_path / name) == WANTED


@pytest.mark.parametrize(
    "name,content", [("a.txt", "b\n\na \n"), ("a.names", "b\na"), ("a.json", '["b", "a"]')]
)
def test_names_without_ids_are_numbered_from_one(tmp_path, name, content):
    (tmp_path / name).write_text(content)
    assert read_labels(tmp_path / name) == [{"id": 1, "name": "b"}, {"id": 2, "name": "a"}]


@pytest.mark.parametrize(
    "name,content,message",
    [
        ("a.pbtxt", "item { id: 1 name: 'a'", "never closed"),
        ("a.pbtxt", "item { name: 'a' }", "not a class list"),
        ("a.pbtxt", "itemize", "expected 'item'"),
        ("a.pbtxt", "", "needs an integer id"),
        ("a.pbtxt", "item { id: x name: 'a' }", "needs an integer id"),
        ("a.pbtxt", "item { id: 1 name: 'a' } item { id: 1 name: 'b' }", "two classes have the id 1"),
        ("a.json", "{", "not a class list"),
        ("a.json", "3", "not a class list"),
        ("a.json", '[{"id": 1}]', "not a class list"),
        ("a.csv", "1,2,3\n", "not id,name"),
        ("a.csv", "", "needs an integer id"),
    ],
)
def test_invalid_class_lists(tmp_path, name, content, message):
    (tmp_path / name).write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        read_labels(tmp_path / name)
    assert "\n" not in str(caught.value)


def test_missing_file(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        read_labels(tmp_path / "a.pbtxt")
