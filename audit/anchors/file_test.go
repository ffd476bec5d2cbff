package anchors

import (
	"errors"
	"os"
	"os/signal"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

func read(t *testing.T, path string) []byte {
	t.Helper()
	data, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	return data
}

// Each checkpoint is appended, also after a restart, and can be read back.
func TestFile(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoints")
	l := newLog(t, "a")
	for _, leaf := range []string{"b", "c", "d"} {
		a := File(path, l.verifier) // as a new process would
		for _, more := range []string{leaf, leaf + leaf} {
			l.add(t, more)
			if signatures, err := put(t, a, l); err != nil || signatures != "" {
				t.Fatalf("%q, %v", signatures, err)
			}
		}
	}
	if _, err := put(t, File(path, l.verifier), l); err != nil {
		t.Errorf("the same once more: %v", err)
	}
	if got := opens(t, read(t, path), l.verifier); !slices.Equal(got, []uint64{2, 3, 4, 5, 6, 7, 7}) {
		t.Errorf("%d", got)
	}
	if info, err := os.Stat(path); err != nil || info.Mode().Perm() != 0o600 {
		t.Errorf("mode %v, %v", info.Mode(), err)
	}
}

// A checkpoint for which there is no room leaves nothing of itself.
func TestFileWithoutRoom(t *testing.T) {
	path := filepath.Join(t.TempDir(), "checkpoints")
	l := newLog(t, "a")
	a := File(path, l.verifier)
	if _, err := put(t, a, l); err != nil {
		t.Fatal(err)
	}
	before := read(t, path)
	signal.Ignore(syscall.SIGXFSZ)
	var limit unix.Rlimit
	if err := unix.Getrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &unix.Rlimit{Cur: uint64(len(before)) + 20, Max: limit.Max}); err != nil {
		t.Fatal(err)
	}
	l.add(t, "b")
	_, failed := put(t, a, l)
	if err := unix.Setrlimit(unix.RLIMIT_FSIZE, &limit); err != nil {
		t.Fatal(err)
	}
	if got := read(t, path); !errors.Is(failed, syscall.EFBIG) || !slices.Equal(got, before) {
		t.Errorf("%v; %q is in the file", failed, got)
	}
	if _, err := put(t, a, l); err != nil {
		t.Errorf("with room: %v", err)
	}
	if got := opens(t, read(t, path), l.verifier); !slices.Equal(got, []uint64{1, 2}) {
		t.Errorf("%d", got)
	}
}

// What somebody did to the file, or to the log, is said, and the checkpoint is
// there all the same.
func TestFileNotices(t *testing.T) {
	for _, row := range []struct {
		name string
		live bool // the server that wrote the file is the one that looks
		harm func(data []byte) []byte
		log  []string // what the log holds then; nil is as it was
		want string   // empty where nothing can be noticed
	}{
		{name: "cut at the end", live: true, harm: func(d []byte) []byte { return d[:len(d)/2] }, want: "somebody cut or replaced it"},
		{name: "emptied", live: true, harm: func([]byte) []byte { return nil }, want: "somebody cut or replaced it"},
		{name: "written on", live: true, harm: func(d []byte) []byte { return append(d, "more\n\n"...) }, want: "not what this server wrote"},
		{name: "changed", live: true, harm: func(d []byte) []byte { d[len(d)-10] ^= 1; return d }, want: "not what this server wrote"},
		{name: "torn", harm: func(d []byte) []byte { return d[:len(d)-3] }, want: "in the middle of a checkpoint"},
		{name: "torn in the text", harm: func(d []byte) []byte { return append(d, "log.example\n12"...) }, want: "in the middle of a checkpoint"},
		{name: "changed while the server was down", harm: func(d []byte) []byte { d[len(d)-10] ^= 1; return d }, want: "does not open"},
		{name: "something else", harm: func([]byte) []byte { return []byte("hello\n\n") }, want: "does not open"},
		{name: "nothing", harm: func([]byte) []byte { return []byte("\n\n\n") }, want: "no checkpoint"},
		{name: "log put back", log: []string{"a", "b"}, want: "the file has a checkpoint of 3 records, and the log has 2"},
		{name: "log rewritten", log: []string{"a", "x", "c", "d"}, want: "the log does not continue the file's last checkpoint, of 3 records"},
		{name: "log went on", log: []string{"a", "b", "c", "d"}},
	} {
		t.Run(row.name, func(t *testing.T) {
			path := filepath.Join(t.TempDir(), "checkpoints")
			l := newLog(t, "a", "b")
			a := File(path, l.verifier)
			for _, leaf := range []string{"c", ""} {
				if leaf != "" {
					l.add(t, leaf)
				}
				if _, err := put(t, a, l); err != nil {
					t.Fatal(err)
				}
			}
			if row.harm != nil {
				if err := os.WriteFile(path, row.harm(read(t, path)), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			if !row.live {
				a = File(path, l.verifier)
			}
			if row.log != nil {
				l = l.rewritten(t, row.log...)
			}
			_, err := put(t, a, l)
			if row.want == "" && err != nil || row.want != "" && (err == nil || !strings.Contains(err.Error(), row.want)) {
				t.Errorf("got %v, want %q", err, row.want)
			}
			signed, _ := l.Checkpoint()
			if !strings.HasSuffix(string(read(t, path)), "\n"+string(signed)+"\n") && string(read(t, path)) != string(signed)+"\n" {
				t.Errorf("it was not appended: %q", read(t, path))
			}
			if _, err := put(t, a, l); err != nil {
				t.Errorf("the next one: %v", err)
			}
		})
	}
}

// What is no file is not waited for.
func TestFileIsNone(t *testing.T) {
	l := newLog(t, "a")
	dir := t.TempDir()
	pipe := filepath.Join(dir, "pipe")
	if err := syscall.Mkfifo(pipe, 0o600); err != nil {
		t.Fatal(err)
	}
	for _, path := range []string{dir, pipe, filepath.Join(dir, "absent", "file")} {
		if _, err := put(t, File(path, l.verifier), l); err == nil {
			t.Errorf("%s was taken", path)
		}
	}
}
