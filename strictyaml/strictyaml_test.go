package strictyaml

import (
	"errors"
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"syscall"
	"testing"
	"time"
)

type settings struct {
	Name    string             `yaml:"name"`
	Count   int                `yaml:"count"`
	Size    *uint64            `yaml:"size"`
	On      bool               `yaml:"on"`
	Wait    time.Duration      `yaml:"wait"`
	List    []string           `yaml:"list"`
	Labels  map[string]string  `yaml:"labels"`
	Nested  nested             `yaml:"nested"`
	Inline  struct{ A string } `yaml:"inline"`
	Several []nested           `yaml:"several"`
}

type nested struct {
	Key string `yaml:"key"`
}

func decode(text string) ([]*settings, []*Document, error) {
	var values []*settings
	documents, err := Decode("f.yaml", []byte(text), func() any {
		values = append(values, &settings{})
		return values[len(values)-1]
	})
	return values, documents, err
}

func TestDecode(t *testing.T) {
	size := uint64(7)
	for _, row := range []struct {
		name, text string
		want       []*settings
	}{
		{"block", "name: a\ncount: 3\non: true\nlist:\n- x\n- y\nnested:\n  key: k\n", []*settings{{Name: "a", Count: 3, On: true, List: []string{"x", "y"}, Nested: nested{"k"}}}},
		{"flow and JSON", `{"name": "a", "size": 7, "labels": {"x": "1"}, "several": [{"key": "k"}]}`,
			[]*settings{{Name: "a", Size: &size, Labels: map[string]string{"x": "1"}, Several: []nested{{"k"}}}}},
		{"duration", "wait: 1m30s", []*settings{{Wait: 90 * time.Second}}},
		{"several documents", "name: a\n---\nname: b\n", []*settings{{Name: "a"}, {Name: "b"}}},
		{"anchors", "list: &l [x]\nname: a\n", []*settings{{Name: "a", List: []string{"x"}}}},
		{"text that looks like something else", `name: "012"`, []*settings{{Name: "012"}}},
		{"null is absent", "name: ~\nlist:\n", []*settings{{}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			got, documents, err := decode(row.text)
			if err != nil || !reflect.DeepEqual(got, row.want) || len(documents) != len(row.want) {
				t.Errorf("got %+v (%d documents), %v", got, len(documents), err)
			}
		})
	}
}

func TestDecodeRefuses(t *testing.T) {
	for _, row := range []struct{ name, text, want string }{
		{"empty", "", "f.yaml: is empty"},
		{"only comments", "# nothing\n\n# here\n", "f.yaml: is empty"},
		{"unknown key", "name: a\nnaem: b\n", `f.yaml:2: unknown key "naem"`},
		{"another case", "Name: a\n", `f.yaml:1: unknown key "Name"`},
		{"unknown key, deep", "nested:\n  key: a\n  kee: b\n", `f.yaml:3: unknown key "kee"`},
		{"unknown key in a list", "several:\n- key: a\n- kee: b\n", `f.yaml:3: unknown key "kee"`},
		{"unknown key of a struct without a name", "inline:\n  b: x\n", `f.yaml:2: unknown key "b"`},
		{"unknown key of several words", "a b c: x\n", `f.yaml:1: unknown key "a b c"`},
		{"unknown key of several lines", "name: a\n\"a\\nb\": x\n", `f.yaml:2: unknown key "a\nb"`},
		{"empty key", "'': x\n", `f.yaml:1: unknown key ""`},
		{"key twice", "name: a\ncount: 1\nname: b\n", `f.yaml:3: mapping key "name" already defined at line 1`},
		{"key twice in a map", "labels:\n  a: x\n  a: y\n", `f.yaml:3: mapping key "a" already defined at line 2`},
		{"text for a number", "count: many\n", `f.yaml:1: "many" where a whole number is expected`},
		{"negative for an unsigned number", "size: -1\n", `f.yaml:1: "-1" where a whole number is expected`},
		{"number too large", "count: 99999999999999999999\n", `f.yaml:1: "9999999..." where a whole number is expected`},
		{"text for a truth value", "on: maybe\n", `f.yaml:1: "maybe" where true or false is expected`},
		{"number for a duration", "wait: x\n", `f.yaml:1: "x" where a duration such as "45s" is expected`},
		{"text for a list", "list: x\n", `f.yaml:1: "x" where a list is expected`},
		{"text for a mapping", "nested: x\n", `f.yaml:1: "x" where a mapping is expected`},
		{"text for a mapping without a name", "inline: x\n", `f.yaml:1: "x" where a mapping is expected`},
		{"text for a map", "labels: x\n", `f.yaml:1: "x" where a mapping is expected`},
		{"text of several words", "nested: \"a `b` c\"\n", "f.yaml:1: \"a `b` c\" where a mapping is expected"},
		{"list for text", "name: [x]\n", `f.yaml:1: a list where text is expected`},
		{"mapping for a list", "list: {a: b}\n", `f.yaml:1: a mapping where a list is expected`},
		{"a list at the top", "- a\n", `f.yaml:1: a list where a mapping is expected`},
		{"text at the top", "a\n", `f.yaml:1: "a" where a mapping is expected`},
		{"a tag of another's", "nested: !vault x\n", `f.yaml:1: "x" where a mapping is expected`},
		{"a tag and no value", "nested: !vault ''\n", `f.yaml:1: vault where a mapping is expected`},
		{"unknown alias", "name: *x\n", `f.yaml: unknown anchor 'x' referenced`},
		{"does not parse", "name: \"a\ncount: 1", `f.yaml:2: found unexpected end of stream`},
		{"second document does not parse", "name: a\n---\nname: {\n", `f.yaml:3: did not find expected node content`},
		{"all at once", "naem: a\ncount: x\n---\nlist: 1\n", "f.yaml:1: unknown key \"naem\"\nf.yaml:2: \"x\" where a whole number is expected\nf.yaml:4: \"1\" where a list is expected"},
	} {
		t.Run(row.name, func(t *testing.T) {
			_, _, err := decode(row.text)
			if err == nil || err.Error() != row.want {
				t.Errorf("got  %v\nwant %s", err, row.want)
			}
			var problems Problems
			if !errors.As(err, &problems) {
				t.Errorf("%T is not Problems", err)
			}
		})
	}
}

func TestDecodeBounds(t *testing.T) {
	if _, _, err := decode("name: " + strings.Repeat("a", MaxBytes)); err == nil || err.Error() != "f.yaml: is 1048582 bytes; 1048576 is the most that is read" {
		t.Errorf("too large: %v", err)
	}
	if _, _, err := decode("name: a\n" + strings.Repeat("#", MaxBytes-8)); err != nil {
		t.Errorf("as large as may be: %v", err)
	}
	// Nine levels of nine would be 387 million items.
	bomb := "a: &a [x,x,x,x,x,x,x,x,x]\n"
	for i := range 8 {
		bomb += string(rune('b'+i)) + ": &" + string(rune('b'+i)) + " [" + strings.Repeat("*"+string(rune('a'+i))+",", 9) + "]\n"
	}
	if _, _, err := decode(bomb + "list: *i\n"); err == nil {
		t.Error("an alias bomb was read")
	}
	if _, _, err := decode("list: &l [*l]\n"); err == nil {
		t.Error("a list within itself was read")
	}
}

func TestProblemNamesTheLine(t *testing.T) {
	const text = `# a comment
name: a
nested:
  key: k
several:
- key: one

- {key: two}
labels: &l
  x: y
inline: *l
`
	_, documents, _ := decode(text)
	for _, row := range []struct {
		path []any
		line int
	}{
		{nil, 2},
		{[]any{"name"}, 2},
		{[]any{"nested"}, 3},
		{[]any{"nested", "key"}, 4},
		{[]any{"several"}, 5},
		{[]any{"several", 0}, 6},
		{[]any{"several", 1, "key"}, 8},
		{[]any{"inline", "x"}, 10}, // through the alias, where it was written
		{[]any{"absent"}, 2},       // nearest is the document
		{[]any{"nested", "no"}, 3}, // nearest is its parent
		{[]any{"several", 7}, 5},   // past the end
		{[]any{"several", "x"}, 5}, // a key where there is a list
		{[]any{"name", 0, "x"}, 2}, // an index where there is text
	} {
		got := documents[0].Problem(row.path, "rule %s: bad", "r")
		if want := (Problem{File: "f.yaml", Line: row.line, Text: "rule r: bad"}); got != want {
			t.Errorf("%v: got %+v, want line %d", row.path, got, row.line)
		}
	}
	_, documents, _ = decode("name: a\n---\nname: b\n")
	if got := documents[1].Problem([]any{"name"}, "x"); got.Line != 3 {
		t.Errorf("in the second document: line %d", got.Line)
	}
}

// A key that was begun and not finished is found wherever it stands.
func TestEmpty(t *testing.T) {
	_, documents, err := decode(`name: a
labels: {}
nested:
  key:
several:
- key: ""
- key: x
list: [a]
inline: {a: ~}
`)
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		`f.yaml:2: key "labels" is empty: fill it in or leave it out`, `f.yaml:4: key "key" is empty: fill it in or leave it out`,
		`f.yaml:6: key "key" is empty: fill it in or leave it out`, `f.yaml:9: key "a" is empty: fill it in or leave it out`,
	}
	if got := documents[0].Empty().Error(); got != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
	if _, documents, _ = decode("name: a\ncount: 0\non: false\nlist: [x]\n"); len(documents[0].Empty()) > 0 {
		t.Errorf("zero and false are values: %v", documents[0].Empty())
	}
}

func TestInt(t *testing.T) {
	for _, row := range []struct {
		text string
		want Int
		err  string
	}{
		{"3", 3, ""}, {"-1", -1, ""}, {"0x10", 16, ""}, {"0", 0, ""},
		{"1.9", 0, `f:1: "1.9" where a whole number is expected`},
		{"1.0", 0, `f:1: "1.0" where a whole number is expected`},
		{`"3"`, 0, `f:1: "3" where a whole number is expected`},
		{"many", 0, `f:1: "many" where a whole number is expected`},
		{"true", 0, `f:1: "true" where a whole number is expected`},
		{"[1]", 0, `f:1: a list where a whole number is expected`},
		{"99999999999999999999", 0, `f:1: "99999999999999999999" where a whole number is expected`},
	} {
		var value struct{ N Int }
		_, err := Decode("f", []byte("n: "+row.text), func() any { return &value })
		if value.N != row.want || (err == nil) != (row.err == "") || err != nil && err.Error() != row.err {
			t.Errorf("%s: %d, %v; want %s", row.text, value.N, err, row.err)
		}
	}
}

func TestProblemText(t *testing.T) {
	if got := (Problem{File: "f", Line: 3, Text: "x"}).Error(); got != "f:3: x" {
		t.Error(got)
	}
	if got := (Problem{File: "f", Text: "x"}).Error(); got != "f: x" {
		t.Error(got)
	}
	if Problems(nil).OrNil() != nil {
		t.Error("no problems are an error")
	}
}

// Whatever a file holds, it is read or every mistake has a file and a text, and
// every part of what was read can be named.
func FuzzDecode(f *testing.F) {
	for _, seed := range []string{
		"name: a\ncount: 1\n", "a: &a [*a]", "nested: {key: &k x}\nname: *k", "<<: {name: a}\n", "? [a]\n: b\n", "--- !!str\n...\n---\n", "name: |\n  a\n\tb", "{", "\xff\xfe", "%YAML 9.9\n---\na: b", "several: [{kee: 1}, {key: 2}]",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, data []byte) {
		var n int
		documents, err := Decode("f.yaml", data, func() any { n++; return &settings{} })
		if err == nil && (len(documents) == 0 || n < len(documents)) {
			t.Fatalf("%d documents, %d values, no error", len(documents), n)
		}
		var problems Problems
		if err != nil && !errors.As(err, &problems) {
			t.Fatalf("%T: %v", err, err)
		}
		for _, p := range problems {
			if p.File != "f.yaml" || p.Text == "" || strings.Contains(p.Text, "strictyaml.settings") {
				t.Errorf("problem %+v", p)
			}
		}
		for _, d := range documents {
			for _, path := range [][]any{{"name"}, {"several", 0, "key"}, {"nested", "key", "x", 3}} {
				if p := d.Problem(path, "x"); p.Line < 0 {
					t.Errorf("%+v", p)
				}
			}
		}
	})
}

// A short file that stands for a very long one is refused before it is unfolded.
func TestUnfolds(t *testing.T) {
	long := "a: [&x " + strings.Repeat("x", 1<<16) + strings.Repeat(", *x", 1<<10) + "]"
	_, err := Decode("f.yaml", []byte(long), func() any { return new(map[string]any) })
	if err == nil || err.Error() != "f.yaml:1: unfolds to more than 16777216 bytes: write it without so many aliases" {
		t.Errorf("got %v", err)
	}
	if _, err := Decode("f.yaml", []byte("a: &x [b]\nc: *x\n"), func() any { return new(map[string]any) }); err != nil {
		t.Errorf("got %v", err)
	}
	// Nor is it read in parts.
	part := "a: [&x " + strings.Repeat("x", 1<<10) + strings.Repeat(", *x", 1<<12) + "]\n"
	_, err = Decode("f.yaml", []byte(strings.Repeat(part+"---\n", 6)), func() any { return new(map[string]any) })
	if err == nil || err.Error() != "f.yaml:6: unfolds to more than 16777216 bytes: write it without so many aliases" {
		t.Errorf("in parts: got %v", err)
	}
}

// Only a regular file is opened, through a link or not: a pipe would not end,
// and a device would fill the memory.
func TestReadFile(t *testing.T) {
	dir := t.TempDir()
	path := func(name string) string { return filepath.Join(dir, name) }
	for _, err := range []error{
		os.WriteFile(path("good"), []byte("a: b"), 0o600),
		os.WriteFile(path("large"), make([]byte, MaxBytes+1), 0o600),
		os.WriteFile(path("full"), make([]byte, MaxBytes), 0o600),
		os.Symlink("good", path("link")),
		os.Symlink("/dev/zero", path("zero")),
		os.Mkdir(path("folder"), 0o700),
		syscall.Mkfifo(path("pipe"), 0o600),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	for name, want := range map[string]string{
		"good": "", "link": "", "full": "",
		"large":  "large is larger than 1048576 bytes",
		"zero":   "zero is not a file",
		"folder": "folder is not a file",
		"pipe":   "pipe is not a file",
		"absent": "stat absent: no such file or directory",
	} {
		data, err := ReadFile(os.DirFS(dir), name)
		if (err == nil) != (want == "") || err != nil && err.Error() != want || err == nil && len(data) == 0 {
			t.Errorf("%s: got %d bytes, %v; want %s", name, len(data), err, want)
		}
	}
}

// Every place in a problem has the folder.
func TestProblemsInAFolder(t *testing.T) {
	p := Problems{{File: "b", Line: 2, Text: "name is used already", First: &Problem{File: "a", Line: 1}}, {File: "c", Text: "is empty"}}
	if got, want := p.In("dir").Error(), "dir/b:2: name is used already, at dir/a:1\ndir/c: is empty"; got != want {
		t.Errorf("got %s", got)
	}
	if p[0].First.File != "a" {
		t.Error("the problems themselves were changed")
	}
}
