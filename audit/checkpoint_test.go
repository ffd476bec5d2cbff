package audit_test

import (
	"bytes"
	"errors"
	"strings"
	"testing"
	"unicode"

	"golang.org/x/mod/sumdb/note"
	"golang.org/x/mod/sumdb/tlog"

	"countersign/audit"
	"countersign/audit/logtest"
)

const emptyRoot = "47DEQpj8HBSa+/TImW+5JCeuQeRkm5NMpJWZG3hSuFU="

func TestCheckpointBytes(t *testing.T) {
	for _, row := range []struct {
		checkpoint audit.Checkpoint
		want       string
	}{
		{audit.Checkpoint{Origin: "log.example.com/a", Size: 0, Root: (&audit.Tree{}).Root()}, "log.example.com/a\n0\n" + emptyRoot + "\n"},
		{audit.Checkpoint{Origin: "x", Size: 1<<63 - 1}, "x\n9223372036854775807\nAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=\n"},
	} {
		if got := row.checkpoint.Text(); got != row.want {
			t.Errorf("got %q, want %q", got, row.want)
		}
	}
}

func sign(t testing.TB, text string, s note.Signer) []byte {
	t.Helper()
	signed, err := note.Sign(&note.Note{Text: text}, s)
	if err != nil {
		t.Fatal(err)
	}
	return signed
}

func TestOpenCheckpoint(t *testing.T) {
	log, other := logtest.NewLog(1), logtest.NewLog(2)
	want := audit.Checkpoint{Origin: "log.example.com", Size: 42, Root: tlog.RecordHash([]byte("x"))}
	good, err := want.Sign(log.Signer)
	if err != nil {
		t.Fatal(err)
	}
	witnessed, err := note.Sign(&note.Note{Text: want.Text()}, log.Signer, other.Signer)
	if err != nil {
		t.Fatal(err)
	}
	extended := sign(t, want.Text()+"extension\n", log.Signer)
	for name, signed := range map[string][]byte{"its own": good, "with another signature": witnessed, "with an extension line": extended} {
		if got, err := audit.OpenCheckpoint(signed, log.Verifier); err != nil || got != want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
	}
	if _, err := audit.OpenCheckpoint(sign(t, want.Text(), other.Signer), log.Verifier); !errors.Is(err, audit.ErrOtherKey) {
		t.Errorf("another key: %v", err)
	}

	root := "LXEWQrcmsEQBYnyp5VhnTVJw4xMDcBxyMPXMX1bU9hc="
	for name, text := range map[string]string{
		"no lines":                "\n",
		"one line":                "log.example.com\n",
		"two lines":               "log.example.com\n42\n",
		"no origin":               "\n42\n" + root + "\n",
		"the origin of another":   "log.example.org\n42\n" + root + "\n",
		"an origin that is more":  "log.example.com \n42\n" + root + "\n",
		"no size":                 "log.example.com\n\n" + root + "\n",
		"a size below 0":          "log.example.com\n-1\n" + root + "\n",
		"a size with a sign":      "log.example.com\n+42\n" + root + "\n",
		"a size with a 0":         "log.example.com\n042\n" + root + "\n",
		"a size with a space":     "log.example.com\n42 \n" + root + "\n",
		"a size in other digits":  "log.example.com\n٤٢\n" + root + "\n",
		"a size that is too long": "log.example.com\n9223372036854775808\n" + root + "\n",
		"no root":                 "log.example.com\n42\n\n",
		"a root that is short":    "log.example.com\n42\n" + root[4:] + "\n",
		"a root that is long":     "log.example.com\n42\nAAAA" + root + "\n",
		"a root without padding":  "log.example.com\n42\n" + strings.TrimRight(root, "=") + "\n",
		"a root with loose bits":  "log.example.com\n42\n" + root[:42] + "d=\n",
		"a root in URL letters":   "log.example.com\n42\n" + strings.Replace(root, "L", "_", 1) + "\n",
		"a root in hex":           "log.example.com\n42\n" + strings.Repeat("ab", 32) + "\n",
		"go.sum's header":         "go.sum database tree\n42\n" + root + "\n",
	} {
		if c, err := audit.OpenCheckpoint(sign(t, text, log.Signer), log.Verifier); !errors.Is(err, audit.ErrBadCheckpoint) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
	for name, signed := range map[string][]byte{
		"nothing":             nil,
		"no signature":        []byte(want.Text()),
		"an empty signature":  []byte(want.Text() + "\n"),
		"another size":        bytes.Replace(good, []byte("\n42\n"), []byte("\n43\n"), 1),
		"another root":        bytes.Replace(good, good[20:24], []byte("AAAA"), 1),
		"cut":                 good[:len(good)-1],
		"cut in its key":      good[:len(want.Text())+20],
		"CRLF":                bytes.ReplaceAll(good, []byte("\n"), []byte("\r\n")),
		"two":                 append(bytes.Clone(good), good...),
		"another's extension": bytes.Replace(good, []byte("\n\n"), []byte("\nextension\n\n"), 1),
	} {
		if c, err := audit.OpenCheckpoint(signed, log.Verifier); !errors.Is(err, audit.ErrBadCheckpoint) {
			t.Errorf("%s: %+v, %v", name, c, err)
		}
	}
}

func FuzzOpenCheckpoint(f *testing.F) {
	log := logtest.NewLog(1)
	log.Fill(logtest.New(1), 3, 0)
	good := string(log.Checkpoint())
	f.Add(good, "log.example.com\n42\n"+emptyRoot+"\n")
	f.Add(good+good, "log.example.com\n042\n"+emptyRoot+"\nmore\n")
	f.Add("— a AAAAAAA=\n", "x\n\n")
	want, err := audit.OpenCheckpoint([]byte(good), log.Verifier)
	if err != nil {
		f.Fatal(err)
	}
	f.Fuzz(func(t *testing.T, signed, text string) {
		// Nothing else than what was signed opens, though a note has more than one form.
		if c, err := audit.OpenCheckpoint([]byte(signed), log.Verifier); err == nil && c != want {
			t.Errorf("%q opens: %+v", signed, c)
		}
		// What opens says what it says.
		if note, err := note.Sign(&note.Note{Text: text}, log.Signer); err == nil {
			if c, err := audit.OpenCheckpoint(note, log.Verifier); err == nil && !strings.HasPrefix(text, c.Text()) {
				t.Errorf("%q opens as %q", text, c.Text())
			}
		}
	})
}

func FuzzCheckpoints(f *testing.F) {
	log := logtest.NewLog(1)
	good := log.Checkpoint()
	f.Add(string(good), "")
	f.Add("log\n12\n\n", "\n— log sig1=\n")
	f.Add("— x\n\n\n", "— y\n")
	f.Fuzz(func(t *testing.T, before, after string) {
		// The whole ones are found between whatever there is, if it ends in an empty line.
		text := before + "\n\n" + string(good) + "\n" + after
		found, size := 0, 0
		for _, signed := range audit.Checkpoints([]byte(text)) {
			if bytes.Equal(signed, good) {
				found++
			}
			size += len(signed)
		}
		if size > len(text)+1 {
			t.Errorf("%q became longer", text)
		}
		if found == 0 && !strings.HasPrefix(strings.TrimLeftFunc(after, unicode.IsSpace), "—") {
			t.Errorf("not found in %q", text)
		}
	})
}
