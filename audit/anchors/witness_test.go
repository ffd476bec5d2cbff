package anchors

import (
	"context"
	"fmt"
	"io"
	"net/http"
	"strings"
	"testing"
	"time"

	"filippo.io/torchwood"
	"golang.org/x/mod/sumdb/note"

	"countersign/audit/anchors/witnesstest"
)

func startWitness(t *testing.T, l *testLog) (*witnesstest.Witness, Anchor) {
	t.Helper()
	w, err := witnesstest.Start("witness.example/w1")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(w.Close)
	w.Know(l.verifier)
	return w, anchor(t, w)
}

func anchor(t *testing.T, w *witnesstest.Witness) Anchor {
	t.Helper()
	a, err := Witness(w.URL+"/", w.Key)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// The witness signs what continues, also after this server has forgotten what it
// signed, and the signature verifies on the note.
func TestWitness(t *testing.T) {
	l := newLog(t, "a")
	w, a := startWitness(t, l)
	if a.Name != "witness:witness.example/w1" {
		t.Error(a.Name)
	}
	verifier, err := torchwood.NewCosignatureVerifier(w.Key)
	if err != nil {
		t.Fatal(err)
	}
	check := func() {
		t.Helper()
		line, err := put(t, a, l)
		if err != nil {
			t.Fatal(err)
		}
		h := l.head(t)
		n, err := note.Open(append(h.Note, line...), note.VerifierList(l.verifier, verifier))
		if err != nil || len(n.Sigs) != 2 || n.Text != h.Text() {
			t.Errorf("%q: %v", line, err)
		}
		if got := w.Seen("log.example"); got != int64(h.Size) {
			t.Errorf("it has seen %d", got)
		}
	}
	check()
	for i := range 70 { // proofs of all shapes
		l.add(t, fmt.Sprint(i))
		check()
	}
	if n := w.Requests(); n != 71 {
		t.Errorf("%d requests", n)
	}
	check() // nothing new
	a = anchor(t, w)
	check() // after a restart, at the same size
	a = anchor(t, w)
	l.add(t, "b", "c")
	check() // after a restart, at another
	if n := w.Requests(); n != 76 {
		t.Errorf("%d requests: two more for each restart are expected", n)
	}
}

// A log that was changed finds no witness, and the error says what is wrong.
func TestWitnessRefuses(t *testing.T) {
	for _, row := range []struct {
		name    string
		log     []string
		restart bool
		want    string
	}{
		{"cut", []string{"a", "b"}, true, "the witness has seen 3 records of this log, which has 2"},
		{"rewritten", []string{"a", "x", "c", "d"}, true, "continues the 3 that it has seen (422)"},
		{"rewritten at the same size", []string{"a", "x", "c"}, true, "has signed another log of 3 records"},
		{"rewritten under a running server", []string{"a", "x", "c"}, false, "has signed another log of 3 records"},
	} {
		l := newLog(t, "a", "b", "c")
		w, a := startWitness(t, l)
		if _, err := put(t, a, l); err != nil {
			t.Fatal(err)
		}
		if row.restart {
			a = anchor(t, w)
		}
		if line, err := put(t, a, l.rewritten(t, row.log...)); err == nil || line != "" || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: %q, %v", row.name, line, err)
		}
	}
	l, other := newLog(t, "a"), newLog(t, "a")
	w, a := startWitness(t, other)
	if _, err := put(t, a, l); err == nil || !strings.Contains(err.Error(), "knows the log log.example by another key (403)") {
		t.Error(err)
	}
	w.Lie(http.NotFound)
	if _, err := put(t, a, l); err == nil || !strings.Contains(err.Error(), "does not know this log (404): give its public key, audit.pub in the data folder, to whoever runs the witness, for the name log.example") {
		t.Error(err)
	}
}

// Nothing that a witness answers passes for its signature, takes long or much.
func TestWitnessLies(t *testing.T) {
	l := newLog(t, "a", "b", "c")
	stranger, err := witnesstest.Start("stranger.example")
	if err != nil {
		t.Fatal(err)
	}
	defer stranger.Close()
	namesake, err := witnesstest.Start("witness.example/w1") // of another key
	if err != nil {
		t.Fatal(err)
	}
	defer namesake.Close()
	text := l.head(t).Text()
	sign := func(w *witnesstest.Witness, text string) string {
		line, err := w.Sign(text)
		if err != nil {
			t.Fatal(err)
		}
		return line
	}
	older := l.rewritten(t, "a", "b").head(t).Text()
	conflict := func(size string) http.HandlerFunc {
		return func(w http.ResponseWriter, _ *http.Request) {
			w.WriteHeader(http.StatusConflict)
			io.WriteString(w, size)
		}
	}
	turns := 0
	var own *witnesstest.Witness
	for _, row := range []struct {
		name string
		lie  http.HandlerFunc
		want string
	}{
		{"nothing", answer(""), "is not good: malformed note"},
		{"no signature", answer("hello\n"), "is not good: malformed note"},
		{"a stranger's", answer(sign(stranger, text)), "the signature of another key"},
		{"of another key of that name", answer(sign(namesake, text)), "the signature of another key"},
		{"the log's own", answer(strings.SplitAfter(string(l.head(t).Note), "\n\n")[1]), "the signature of another key"},
		{"of another state", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, sign(own, older)) }, "is not good: invalid signature"},
		{"of a text that it brings along", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, "— x "+"AAAAAAAA\n\n"+sign(own, text))
		}, "is not good"},
		{"without an end", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, strings.TrimSuffix(sign(own, text), "\n"))
		}, "is not good: malformed note"},
		{"200 lines", func(w http.ResponseWriter, _ *http.Request) {
			io.WriteString(w, strings.Repeat(sign(stranger, text), 200)+sign(own, text))
		}, "is not good: malformed note"},
		{"too much", func(w http.ResponseWriter, _ *http.Request) {
			for range 100 {
				w.Write(make([]byte, 1<<20)) // the other end goes away
			}
		}, "more than 65536 bytes"},
		{"a size that it has not", conflict("4\n"), "has seen 4 records of this log, which has 3"},
		{"a size of its own", conflict("3\n"), "has signed another log of 3 records"},
		{"no size", conflict("three\n"), `without the size that it has seen, but "three\n"`},
		{"a size below nothing", conflict("-1\n"), "without the size"},
		{"a size beyond all", conflict("99999999999999999999\n"), "without the size"},
		{"sizes in a circle", func(w http.ResponseWriter, r *http.Request) {
			turns++
			conflict(fmt.Sprintln(turns%2+1))(w, r)
		}, "contradicts itself"},
		{"the same size for ever", conflict("0\n"), "contradicts itself"},
		{"somewhere else", func(w http.ResponseWriter, r *http.Request) {
			http.Redirect(w, r, stranger.URL+"/add-checkpoint", http.StatusTemporaryRedirect)
		}, "the witness answers 307"},
		{"an error with a long text", func(w http.ResponseWriter, _ *http.Request) {
			http.Error(w, strings.Repeat("\x1b[31mno", 1000), http.StatusInternalServerError)
		}, `the witness answers 500: "\x1b[31mno`},
	} {
		own, _ = witnesstest.Start("witness.example/w1")
		own.Lie(row.lie)
		line, err := put(t, anchor(t, own), l)
		if err == nil || line != "" || !strings.Contains(err.Error(), row.want) || len(err.Error()) > 1000 {
			t.Errorf("%s: %q, %v", row.name, line, err)
		}
		if n := own.Requests(); n > maxAttempts {
			t.Errorf("%s: asked %d times", row.name, n)
		}
		own.Close()
	}
	if stranger.Requests() != 0 {
		t.Error("a redirect was followed")
	}
}

func answer(text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, text) }
}

// One that does not answer is left when the time is over, before or within its answer.
func TestWitnessSlow(t *testing.T) {
	l := newLog(t, "a")
	w, a := startWitness(t, l)
	for _, begin := range []string{"", "— "} {
		ctx, cancel := context.WithCancel(t.Context())
		w.Lie(func(rw http.ResponseWriter, r *http.Request) {
			io.WriteString(rw, begin)
			rw.(http.Flusher).Flush()
			cancel() // the time is over
			<-r.Context().Done()
		})
		if _, err := a.Put(ctx, l.head(t)); err == nil {
			t.Error("it was waited for")
		}
	}
	if witnessTimeout > 30*time.Second {
		t.Error("half a turn is all that witnesses have")
	}
}

// Keys that are none, or for something else, are refused before anybody is asked.
func TestWitnessKeys(t *testing.T) {
	_, logKey, err := note.GenerateKey(nil, "log.example") // signs notes, and is no witness's
	if err != nil {
		t.Fatal(err)
	}
	for _, key := range []string{"", "w", "w+00000000+AAAA", logKey} {
		if _, err := Witness("https://w.example", key); err == nil || !strings.Contains(err.Error(), "NAME+HASH+KEY") {
			t.Errorf("%q: %v", key, err)
		}
	}
}
