package audit_test

import (
	"bytes"
	"fmt"
	"slices"
	"strings"
	"testing"

	"golang.org/x/mod/sumdb/note"

	"countersign/audit"
	"countersign/audit/logtest"
)

func verify(t testing.TB, export []byte, key note.Verifier, signed ...[]byte) audit.Report {
	t.Helper()
	report, err := audit.VerifyExport(bytes.NewReader(export), key, signed)
	if err != nil {
		t.Fatal(err)
	}
	return report
}

// A log that nobody touched passes, at every length, with the checkpoints of any time.
func TestUntouchedExport(t *testing.T) {
	for _, stretch := range []int{0, 1, 16, 100} {
		log, maker := logtest.NewLog(1), logtest.New(1)
		all := [][]byte{log.Checkpoint()}
		for _, size := range []int{0, 1, 2, 3, 16, 17, 63, 64, 65, 255, 256, 257, 300} {
			log.Fill(maker, size, stretch)
			newest := log.Checkpoint()
			all = append(all, newest)
			export := logtest.Export(log.Leaves)
			for name, signed := range map[string][][]byte{"the newest": {newest}, "all": all, "some, twice": {newest, all[len(all)/2], newest, all[len(all)/2]}} {
				report := verify(t, export, log.Verifier, signed...)
				if len(report.Findings) > 0 || report.Size != uint64(size) || report.First != 1 || report.Checkpoints < 1 {
					t.Fatalf("%d records, stretches of %d, %s: %+v", size, stretch, name, report)
				}
			}
		}
	}
}

// After retention has taken records out, wherever the cut is, the rest passes too.
func TestUntouchedPrunedExport(t *testing.T) {
	for before := uint64(2); before <= 130; before += 1 + before/20 {
		log, maker := logtest.NewLog(1), logtest.New(1)
		log.Fill(maker, 100, 16)
		early := log.Checkpoint()
		log.Fill(maker, 130, 16)
		between := log.Checkpoint()
		export := log.Prune(maker, before)
		report := verify(t, export, log.Verifier, log.Checkpoint(), early, between)
		if len(report.Findings) > 0 || report.First != before || report.Size != 131 || report.Checkpoints < 1 {
			t.Fatalf("pruned before %d: %+v", before, report)
		}
		if want := before > 101; (report.Unchecked > 0) != want {
			t.Errorf("pruned before %d: %d checkpoints were not looked at", before, report.Unchecked)
		}

		// While it is pruned once more: the export has records that are older than the
		// newest cut, or begins there.
		if before > 20 {
			continue
		}
		later := log.Prune(maker, before+50)
		both := logtest.Export(log.Leaves[before-1:])
		for name, export := range map[string][]byte{"again": later, "meanwhile": both} {
			if report := verify(t, export, log.Verifier, log.Checkpoint()); len(report.Findings) > 0 {
				t.Fatalf("pruned before %d, %s: %+v", before, name, report)
			}
		}
	}
}

// Records that were split are records like others.
func TestUntouchedSplitExport(t *testing.T) {
	log, maker := logtest.NewLog(1), logtest.New(1)
	r := maker.Next().Record
	r.Actions = slices.Repeat([]audit.Action{{Cluster: "c", Verb: "delete", Resource: "v1/pods", Name: "p"}}, 5*audit.MaxActions+1)
	for i, part := range audit.Split(r, func() string { return "id" }) {
		log.Add(part)
		if report := verify(t, logtest.Export(log.Leaves), log.Verifier, log.Checkpoint()); len(report.Findings) > 0 {
			t.Fatalf("part %d: %+v", i, report)
		}
	}
	if len(log.Leaves) != 6 {
		t.Errorf("%d parts", len(log.Leaves))
	}
}

// What is said of a log, and of which records.
func TestFindings(t *testing.T) {
	log, other := logtest.NewLog(1), logtest.NewLog(2)
	maker := logtest.New(1)
	log.Fill(maker, 20, 8)
	at20 := log.Checkpoint()
	log.Fill(maker, 40, 8)
	other.Fill(logtest.New(2), 40, 8)
	newest, lines := log.Checkpoint(), slices.Clone(log.Leaves)

	fork := logtest.NewLog(1) // has the same key
	fork.Fill(logtest.New(3), 40, 0)
	edit := func(f func(lines [][]byte) [][]byte) []byte { return logtest.Export(f(slices.Clone(lines))) }
	all := logtest.Export(lines)
	none := func(lines [][]byte) [][]byte { return lines }

	for _, row := range []struct {
		name   string
		export []byte
		signed [][]byte
		want   []audit.Finding // but for the text, of which it is a part
	}{
		{"no checkpoint", all, nil, []audit.Finding{{Kind: audit.Unsigned, Text: "there is no checkpoint"}}},
		{"a checkpoint of another log", all, [][]byte{other.Checkpoint()}, []audit.Finding{{Kind: audit.KeyChanged, Text: "signed with another key than log.example.com"}, {Kind: audit.Unsigned}}},
		{"a checkpoint of another log, too", all, [][]byte{newest, other.Checkpoint()}, []audit.Finding{{Kind: audit.KeyChanged}}},
		{"a changed checkpoint", all, [][]byte{newest, bytes.Replace(newest, []byte("\n40\n"), []byte("\n30\n"), 1)}, []audit.Finding{{Kind: audit.Edited, Text: "was changed"}}},
		{"an older checkpoint", edit(none), [][]byte{at20}, []audit.Finding{{Kind: audit.Unsigned, From: 40, To: 40}}}, // record 40 tells of a checkpoint of 39
		{"an older checkpoint, and none in the log", logtest.Export(lines[:22]), [][]byte{at20}, []audit.Finding{{Kind: audit.Unsigned, From: 21, To: 22}}},
		{"the key signed another log", all, [][]byte{newest, fork.Checkpoint()}, []audit.Finding{{Kind: audit.Edited, Text: "two logs"}}},
		{"empty", nil, [][]byte{newest}, []audit.Finding{{Kind: audit.Cut, From: 1, To: 40}}},
		{"cut after line 30", edit(func(l [][]byte) [][]byte { return l[:30] }), [][]byte{newest}, []audit.Finding{{Kind: audit.Cut, From: 31, To: 40}}},
		{"cut in line 31", all[:bytes.Index(all, []byte(`"seq":31`))+20], [][]byte{newest}, []audit.Finding{{Kind: audit.Cut, From: 31, To: 40, Text: "in the middle of line 31"}}},
		{"cut before the last newline", all[:len(all)-1], [][]byte{newest}, []audit.Finding{{Kind: audit.Cut, From: 40, To: 40}}},
		{"without line 7", edit(func(l [][]byte) [][]byte { return slices.Delete(l, 6, 7) }), [][]byte{newest}, []audit.Finding{{Kind: audit.Removed, From: 7, To: 7}}},
		{"without lines 7 to 12", edit(func(l [][]byte) [][]byte { return slices.Delete(l, 6, 12) }), [][]byte{newest}, []audit.Finding{{Kind: audit.Removed, From: 7, To: 12}}},
		{"without the first lines", edit(func(l [][]byte) [][]byte { return l[5:] }), [][]byte{newest}, []audit.Finding{{Kind: audit.Removed, From: 1, To: 5, Text: "an export of a part"}}},
		{"without lines 7 and 20", edit(func(l [][]byte) [][]byte { return slices.Delete(slices.Delete(l, 19, 20), 6, 7) }), [][]byte{newest}, []audit.Finding{{Kind: audit.Removed, From: 7, To: 7}, {Kind: audit.Removed, From: 20, To: 20}}},
		{"neighbours swapped", edit(func(l [][]byte) [][]byte { l[6], l[7] = l[7], l[6]; return l }), [][]byte{newest}, []audit.Finding{{Kind: audit.Reordered, From: 8, To: 8}}},
		{"others swapped", edit(func(l [][]byte) [][]byte { l[6], l[27] = l[27], l[6]; return l }), [][]byte{newest}, []audit.Finding{{Kind: audit.Reordered, From: 7, To: 7}, {Kind: audit.Reordered, From: 28, To: 28}}},
		{"one twice", edit(func(l [][]byte) [][]byte { return slices.Insert(l, 30, l[6]) }), [][]byte{newest}, []audit.Finding{{Kind: audit.Reordered, From: 7, To: 7, Text: "stands in line 31, after record 30"}}},
		{"one in place of another", edit(func(l [][]byte) [][]byte { l[30] = l[6]; return l }), [][]byte{newest}, []audit.Finding{{Kind: audit.Reordered, From: 31, To: 31}}},
		{"a line that is none of ours", edit(func(l [][]byte) [][]byte { l[6] = []byte("{}"); return l }), [][]byte{newest}, []audit.Finding{{Kind: audit.Edited, From: 7, To: 7}}},
		{"a line too many", edit(func(l [][]byte) [][]byte { return slices.Insert(l, 6, nil) }), [][]byte{newest}, []audit.Finding{{Kind: audit.Edited, From: 7, To: 7}}},
		{"two lines in one", bytes.Replace(all, []byte("\n"+`{"v":1,"seq":8,`), []byte(` {"v":1,"seq":8,`), 1), [][]byte{newest}, []audit.Finding{{Kind: audit.Edited, From: 7, To: 8}}},
		{"one line in two", bytes.Replace(all, []byte(`{"v":1,"seq":8,`), []byte(`{"v":1,"seq":8,`+"\n"), 1), [][]byte{newest}, []audit.Finding{{Kind: audit.Edited, From: 8, To: 8}}},
		{"a long line", edit(func(l [][]byte) [][]byte {
			l[6] = []byte(strings.TrimSuffix(string(l[6]), "}") + `,"more":"` + strings.Repeat("x", 200_000) + `"}`)
			return l
		}), [][]byte{newest}, []audit.Finding{{Kind: audit.Edited, From: 7, To: 7}}},
		{"an edited record", bytes.Replace(all, lines[19], bytes.Replace(lines[19], []byte(`"node":"server-0"`), []byte(`"node":"server-1"`), 1), 1), [][]byte{newest},
			[]audit.Finding{{Kind: audit.Edited, From: 16, To: 23}}}, // the checkpoints in the log say where
		{"a record more", logtest.Export(append(slices.Clone(lines), bytes.Replace(lines[38], []byte(`"seq":39`), []byte(`"seq":41`), 1))), [][]byte{newest}, []audit.Finding{{Kind: audit.Unsigned, From: 41, To: 41}}},
		{"a record more, of any number", logtest.Export(append(slices.Clone(lines), bytes.Replace(lines[38], []byte(`"seq":39`), []byte(`"seq":99`), 1))), [][]byte{newest}, []audit.Finding{{Kind: audit.Reordered, From: 99, To: 99}}},
	} {
		t.Run(row.name, func(t *testing.T) {
			report := verify(t, row.export, log.Verifier, row.signed...)
			got := report.Findings
			ok := len(got) == len(row.want)
			for i := range row.want {
				ok = ok && got[i].Kind == row.want[i].Kind && got[i].From == row.want[i].From && got[i].To == row.want[i].To && strings.Contains(got[i].Text, row.want[i].Text)
			}
			if !ok {
				t.Errorf("got  %+v\nwant %+v", got, row.want)
			}
		})
	}
}

// A report has an end however much is wrong.
func TestFindingsAreBounded(t *testing.T) {
	log := logtest.NewLog(1)
	log.Fill(logtest.New(1), 2000, 0)
	signed := log.Checkpoint()
	slices.Reverse(log.Leaves)
	report := verify(t, logtest.Export(log.Leaves), log.Verifier, signed)
	if len(report.Findings) != 100 || report.More < 500 {
		t.Errorf("%d findings and %d more", len(report.Findings), report.More)
	}
}

func FuzzVerifyExport(f *testing.F) {
	log, maker := logtest.NewLog(1), logtest.New(1)
	log.Fill(maker, 6, 3)
	early := log.Checkpoint()
	pruned := log.Prune(maker, 4)
	newest := log.Checkpoint()
	whole := logtest.Export(log.Leaves)
	f.Add(whole, newest)
	f.Add(pruned, newest)
	f.Add(bytes.Join([][]byte{log.Leaves[0], log.Leaves[2], log.Leaves[1]}, []byte("\n")), early)
	f.Add([]byte("{\n\n"+`{"v":1,"seq":18446744073709551615,"type":"log.pruned","pruned":{"records_before":18446744073709551615}}`+"\n"+`{"v":1,"seq":0,}`), newest)
	f.Fuzz(func(t *testing.T, export, signed []byte) {
		report, err := audit.VerifyExport(bytes.NewReader(export), log.Verifier, [][]byte{signed})
		if err != nil {
			t.Fatal(err) // a text can be read
		}
		if len(report.Findings) > 0 {
			return
		}
		// Only what was signed passes.
		want, err := audit.OpenCheckpoint(signed, log.Verifier)
		if err != nil || !bytes.HasSuffix(whole, export) || uint64(len(log.Leaves)) != report.Size || want.Size > report.Size {
			t.Errorf("%q passes with %q: %+v", export, signed, report)
		}
	})
}

// lines tells of a failure.
func describe(f []audit.Finding) string {
	var b strings.Builder
	for _, f := range f[:min(len(f), 5)] {
		fmt.Fprintf(&b, "\n  %s %d..%d: %s", f.Kind, f.From, f.To, f.Text)
	}
	return b.String()
}
