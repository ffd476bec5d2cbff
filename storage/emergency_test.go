package storage

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"countersign/audit"
	"countersign/gate"
)

func outcome(id string) gate.Entry {
	payload := []byte(fmt.Sprintf(`[{"note":"<%s> & more"}]`, id))
	sealed := []byte{0, 1, 2, 255}
	sum, sealedSum := sha256.Sum256(payload), sha256.Sum256(sealed)
	return gate.Entry{
		Record: audit.Record{
			V: audit.Version, ID: id, Time: noon, Type: audit.ExecOutcome, Op: "op-" + id, Outcome: audit.Success, Tool: &audit.Tool{Name: "scale_deployment"},
			Payload: &audit.Payload{SHA256: hex.EncodeToString(sum[:]), Bytes: len(payload), Sealed: "00", SealedSHA256: hex.EncodeToString(sealedSum[:])},
		},
		Payload: payload, Sealed: sealed,
	}
}

var by = audit.Imported{By: "bea (local:7)", Time: noon}

func nobody(string) bool { return false }

// What went to the emergency file comes into the log as it was, with a mark, once.
func TestImport(t *testing.T) {
	path := filepath.Join(t.TempDir(), "store.db")
	s := mustOpen(t, path, Options{})
	e := s.Emergency(filepath.Join(t.TempDir(), "emergency.jsonl"))
	if e.Waiting() != "" {
		t.Error("an emergency file is there before any emergency")
	}
	for _, some := range [][]gate.Entry{{outcome("a")}, {outcome("b"), outcome("c")}} {
		if err := e.Append(some); err != nil {
			t.Fatal(err)
		}
	}
	if info, err := os.Stat(e.path); err != nil || info.Mode().Perm() != 0o600 || e.Waiting() != e.path {
		t.Errorf("%v, %v", info, err)
	}
	if err := s.Commit(t.Context(), gate.Batch{Entries: []gate.Entry{outcome("b")}}); err != nil { // stored after all
		t.Fatal(err)
	}
	held := func(id string) bool { return id == "c" }
	for _, row := range []struct {
		held func(string) bool
		want gate.Imported
	}{
		{held, gate.Imported{Added: 1, Known: 1, Held: 1}}, {held, gate.Imported{Known: 2, Held: 1}},
		{nobody, gate.Imported{Added: 1, Known: 2}}, {nobody, gate.Imported{Known: 3}},
	} {
		if done, err := s.Import(t.Context(), read(e.path), by, row.held); err != nil || done != row.want {
			t.Errorf("%+v, %v; want %+v", done, err, row.want)
		}
	}
	// A file that stands twice in itself is imported once.
	if err := e.Append([]gate.Entry{outcome("d"), outcome("d")}); err != nil {
		t.Fatal(err)
	}
	if done, err := s.Import(t.Context(), read(e.path), by, nobody); err != nil || done.Added != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	var got []string
	err := s.Records(1, func(seq uint64, leaf []byte) error {
		var r audit.Record
		if err := json.Unmarshal(leaf, &r); err != nil {
			return err
		}
		payload, err := s.Payload(seq)
		sealed, _ := s.SealedPayload(seq)
		if want := outcome(r.ID); err != nil || !bytes.Equal(payload, want.Payload) || !bytes.Equal(sealed, want.Sealed) || !r.Time.Equal(noon) {
			t.Errorf("%s: %s %v, %v", leaf, payload, sealed, err)
		}
		marked := r.Imported != nil && *r.Imported == by
		got = append(got, fmt.Sprint(r.ID, " ", marked))
		return nil
	})
	if want := "b false, a true, c true, d true"; err != nil || strings.Join(got, ", ") != want {
		t.Errorf("%q, %v; want %s", got, err, want)
	}
	report, err := s.Verify(t.Context(), s.signer.verifier, nil)
	if err != nil || len(report.Findings) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
	s.Close()
}

// Only what this server wrote itself can be imported, and of that only outcomes; a
// file with anything else is refused whole.
func TestImportRefuses(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Options{})
	defer s.Close()
	other := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Options{})
	defer other.Close()
	lines := func(s *Store, entries ...gate.Entry) string {
		text, err := s.Emergency("").lines(entries, true)
		if err != nil {
			t.Fatal(err)
		}
		return string(text)
	}
	good := lines(s, outcome("good"))
	of := func(change func(*gate.Entry)) string {
		e := outcome("bad")
		change(&e)
		return lines(s, e)
	}
	for _, row := range []struct{ name, file, want string }{
		{"of another server", lines(other, outcome("x")), "line 2: it is not a line that this log's server has written"},
		{"edited", strings.Replace(lines(s, outcome("x")), "success", "failure", 1), "line 2: it is not a line"},
		{"an edited payload", strings.Replace(lines(s, outcome("x")), "more", "less", 1), "line 2: it is not a line"},
		{"no mac", `{"entry":{"record":{"v":1}}}` + "\n", "line 2: it is not a line"},
		{"an unknown key", strings.Replace(lines(s, outcome("x")), `"mac"`, `"by":"me","mac"`, 1), "line 2: it is not a line"},
		{"two on a line", strings.TrimSpace(lines(s, outcome("x"))) + lines(s, outcome("y")), "line 2: it is not a line"},
		{"an empty line", "\n", "line 2: it is not a line"},
		{"an export", `{"v":1,"seq":1,"id":"x"}` + "\n", "line 2: it is not a line"},
		{"an export without its end", `{"v":1,"seq":1,"id":"x"`, "line 2: it is not a line"},
		{"a whole line without its mac being right", strings.TrimSpace(strings.Replace(good, "success", "failure", 1)), "line 2: it is not a line"},
		{"an approval", of(func(e *gate.Entry) { e.Record.Type = audit.ApprovalDecided }), "line 2: it is a record of type approval.decided; only outcomes"},
		{"an intent", of(func(e *gate.Entry) { e.Record.Type = audit.ExecStarted }), "line 2: it is a record of type exec.started; only outcomes"},
		{"one with a number", of(func(e *gate.Entry) { e.Record.Seq = 7 }), "line 2: it is not a line"},
		{"one of no operation", of(func(e *gate.Entry) { e.Record.Op = "" }), "line 2: it is not a line"},
		{"one that is marked", of(func(e *gate.Entry) { e.Record.Imported = &by }), "line 2: it is not a line"},
		{"another payload", of(func(e *gate.Entry) { e.Payload = []byte("{}") }), "line 2: it is not a line"},
	} {
		t.Run(row.name, func(t *testing.T) {
			done, err := s.Import(t.Context(), []byte(good+row.file), by, nobody)
			if err == nil || !strings.Contains(err.Error(), row.want) || done != (gate.Imported{}) {
				t.Errorf("%+v, %v; want %q", done, err, row.want)
			}
		})
	}
	if seq, _, err := s.Head(); seq != 0 || err != nil {
		t.Errorf("%d records, %v", seq, err)
	}
	if _, err := s.Import(t.Context(), make([]byte, MaxEmergency+1), by, nobody); err == nil || !strings.Contains(err.Error(), "more than") {
		t.Error(err)
	}
}

// A crash leaves half a line at the end: it is left out, and the next line does not
// continue it.
func TestEmergencyCut(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Options{})
	defer s.Close()
	e := s.Emergency(filepath.Join(t.TempDir(), "emergency.jsonl"))
	if err := e.Append([]gate.Entry{outcome("a"), outcome("b")}); err != nil {
		t.Fatal(err)
	}
	whole := read(e.path)
	second := bytes.IndexByte(whole, '\n') + 1
	for end := second + 1; end < len(whole)-1; end += 7 {
		done, err := s.Import(t.Context(), whole[:end], by, nobody)
		if err != nil || !done.Cut || done.Added+done.Known != 1 {
			t.Fatalf("cut at %d: %+v, %v", end, done, err)
		}
	}
	truncate(t, e.path, int64(len(whole)-10))
	if err := e.Append([]gate.Entry{outcome("c")}); err != nil {
		t.Fatal(err)
	}
	if done, err := s.Import(t.Context(), read(e.path), by, nobody); err != nil || done != (gate.Imported{Added: 1, Known: 1}) {
		t.Errorf("%+v, %v", done, err)
	}
}

// The file does not grow without bound; the record comes before its payload.
func TestEmergencyBound(t *testing.T) {
	s := mustOpen(t, filepath.Join(t.TempDir(), "store.db"), Options{})
	defer s.Close()
	e := s.Emergency(filepath.Join(t.TempDir(), "emergency.jsonl"))
	short, err := e.lines([]gate.Entry{outcome("a")}, false)
	if err != nil {
		t.Fatal(err)
	}
	filler := bytes.Repeat([]byte{'x'}, MaxEmergency-len(short))
	filler[len(filler)-1] = '\n'
	write(t, e.path, filler, 0o600)
	if err := e.Append([]gate.Entry{outcome("a")}); err != nil || !bytes.HasSuffix(read(e.path), short) {
		t.Errorf("what is left of it does not fit: %v", err)
	}
	if err := e.Append([]gate.Entry{outcome("b")}); err == nil || !strings.Contains(err.Error(), "import it, and take it away") {
		t.Error(err)
	}
	if done, err := s.Import(t.Context(), short, by, nobody); err != nil || done.Added != 1 {
		t.Errorf("%+v, %v", done, err)
	}
	if report, err := s.Verify(t.Context(), s.signer.verifier, nil); err != nil || len(report.Findings) > 0 {
		t.Errorf("%+v, %v", report, err)
	}
	// What is no file is not written to.
	if err := os.Remove(e.path); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(filepath.Join(t.TempDir(), "elsewhere"), e.path); err != nil {
		t.Fatal(err)
	}
	if err := e.Append([]gate.Entry{outcome("b")}); err == nil {
		t.Error("a link is followed")
	}
}
