package main

import (
	"bytes"
	"flag"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

var update = flag.Bool("update", false, "write the golden file anew")

// The recorded output, of a busy machine, lacks Write/clients=8 and all of Million, and
// has goals that were met and missed.
func TestPage(t *testing.T) {
	recorded, err := os.Open("testdata/bench.txt")
	if err != nil {
		t.Fatal(err)
	}
	defer recorded.Close()
	r, err := read(recorded, io.Discard)
	if err != nil {
		t.Fatal(err)
	}
	const golden = "testdata/page.md"
	got := page(r, "A machine. Load average before: 0.10.")
	if *update {
		if err := os.WriteFile(golden, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(golden)
	if err != nil {
		t.Fatal(err)
	}
	if got != string(want) {
		t.Errorf("%s is\n%s\nnow it would be\n%s", golden, want, got)
	}
}

func TestMet(t *testing.T) {
	atMost := goal{benchmark: "B", unit: "u", limit: 2}
	atLeast := goal{benchmark: "B", unit: "u", limit: 2, atLeast: true}
	for _, row := range []struct {
		goal  goal
		line  string
		wants string
	}{
		{atMost, "BenchmarkB-2 1 2 u", "yes"},
		{atMost, "BenchmarkB-2 1 3 u", "**no**, by 50 %"},
		{atMost, "BenchmarkB-2 1 1 other", "not measured"},
		{atMost, "BenchmarkOther-2 1 1 u", "not measured"},
		{atLeast, "BenchmarkB-2 1 2 u", "yes"},
		{atLeast, "BenchmarkB-2 1 1 u", "**no**, by 100 %"},
		{atLeast, "BenchmarkB-2 1 3 u", "yes"},
	} {
		r, err := read(strings.NewReader(row.line), io.Discard)
		if err != nil {
			t.Fatal(err)
		}
		if got := row.goal.met(r); got != row.wants {
			t.Errorf("%s, limit %v, at least %v: %s; want %s", row.line, row.goal.limit, row.goal.atLeast, got, row.wants)
		}
	}
}

// What has ended well is written, with the machine, and nothing else is.
func TestRun(t *testing.T) {
	const well = "goos: linux\nkubernetes: v1.99.0\ncpu: A Processor @ 2.00GHz\nBenchmarkDiff-2 \t 100\t 58487 ns/op\t 21864 B/op\t 538 allocs/op\nPASS\n"
	for _, row := range []struct {
		name, in string
		written  bool
	}{
		{"ended well", well, true},
		{"a benchmark failed", well + "--- FAIL: BenchmarkRead/clients=8-2\n", false},
		{"a package failed", well + "FAIL\tcountersign/e2e\t1.0s\n", false},
		{"not a number", well + "BenchmarkX-2 1 many ns/op\n", false},
	} {
		t.Run(row.name, func(t *testing.T) {
			file := filepath.Join(t.TempDir(), "page.md")
			if err := os.WriteFile(file, []byte("before"), 0o600); err != nil {
				t.Fatal(err)
			}
			var out bytes.Buffer
			err := run(strings.NewReader(row.in), &out, file)
			if (err == nil) != row.written {
				t.Errorf("error %v", err)
			}
			if !strings.HasPrefix(out.String(), row.in) {
				t.Errorf("what came in is not passed on, but: %s", out.String())
			}
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			if !row.written {
				if string(text) != "before" {
					t.Errorf("it wrote: %s", text)
				}
				return
			}
			for _, part := range []string{"\nA Processor @ 2.00GHz, ", "Kubernetes v1.99.0, ", "Load average before: ", "| 58.5 µs | 538, 21.4 KiB |"} {
				if !strings.Contains(string(text), part) {
					t.Errorf("it lacks %q: %s", part, text)
				}
			}
		})
	}
}
