package e2e

import (
	"bytes"
	"fmt"
	"io"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"runtime"
	"strings"
	"sync"
	"testing"

	"golang.org/x/sys/unix"

	"countersign/e2e/rig"
)

// fault is a server that the system begins to refuse writes to at a commit.
type fault struct {
	*stage
	data, room string // the data folder, and the file that makes writes succeed again
}

func newFault(t *testing.T, at string) *fault {
	t.Helper()
	if runtime.GOOS != "linux" {
		t.Skip("only Linux makes its own system calls fail (seccomp)")
	}
	f := &fault{stage: prepareStage(t, "")}
	binary, err := world.faulty()
	if err != nil {
		t.Fatal(err)
	}
	f.server.Binary = binary
	f.data = filepath.Join(filepath.Dir(f.server.Config), "data")
	f.room = filepath.Join(t.TempDir(), "room")
	f.server.Env = []string{"COUNTERSIGN_FAULT=" + at, "COUNTERSIGN_FAULT_UNTIL=" + f.room}
	f.start()
	t.Cleanup(func() { f.server.Stop() })
	f.connect()
	return f
}

// restart stops the server, as far as it can be stopped well, and starts it on a good disk.
func (f *fault) restart() {
	f.Helper()
	f.server.Stop()
	f.server.Env = nil
	f.start()
}

func (f *fault) ready() (int, string) {
	f.Helper()
	resp, err := http.Get(strings.TrimSuffix(f.server.URL, "/mcp") + "/readyz")
	if err != nil {
		f.Fatal(err)
	}
	defer resp.Body.Close()
	text, err := io.ReadAll(resp.Body)
	if err != nil {
		f.Fatal(err)
	}
	return resp.StatusCode, string(text)
}

// says checks that countersign status fails and says so.
func (f *fault) says(want string) {
	f.Helper()
	if _, err := f.server.Run(f.ctx, "status"); err == nil || !strings.Contains(err.Error(), want) {
		f.Errorf("status: %v; want an error with %q", err, want)
	}
}

// verified checks the log and how many records of the operation there are of a type.
func (f *fault) verified() {
	f.Helper()
	if text, err := f.server.Run(f.ctx, "audit", "verify"); err != nil {
		f.Errorf("%s%v", text, err)
	}
}

// imports imports the emergency file and checks what the command says.
func (f *fault) imports(want string) {
	f.Helper()
	text, err := f.server.Run(f.ctx, "audit", "import", filepath.Join(f.data, "emergency.jsonl"))
	if err != nil || !strings.HasPrefix(text, want+"\n") {
		f.Errorf("import: %q, %v; want %q", text, err, want)
	}
}

func (f *fault) answered(answer rig.Answer, status, reason string) string {
	f.Helper()
	if answer.Structured.Status != status || !strings.Contains(answer.Structured.Reason, reason) {
		f.Fatalf("%s %q; want %s %q", answer.Structured.Status, answer.Structured.Reason, status, reason)
	}
	return answer.Structured.Op
}

const (
	full     = "the audit log is full, so nothing is done"
	none     = "the audit log cannot take a record, so nothing is done"
	withheld = "its outcome could not be recorded, so it is not given out"
)

// The disk is full when a change is to start: nothing is sent, and the server says why.
// When there is room it goes on by itself.
func TestDiskFullAtIntent(t *testing.T) {
	f := newFault(t, "before exec.started 1 pwrite64 1 ENOSPC")
	op := f.answered(f.scale(5), "failed", full)
	if code, text := f.ready(); code != 503 || !strings.Contains(text, "audit log: full") {
		t.Errorf("ready: %d %s", code, text)
	}
	f.says("audit log: the audit log is full: write ")
	if answer, err := f.agent.Call(f.ctx, "list_resources", fmt.Sprintf(`{"kind":"pods","namespace":%q}`, f.namespace)); err != nil || !answer.IsError {
		t.Errorf("a read is answered without a record: %+v, %v", answer, err)
	}
	if err := os.WriteFile(f.room, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	var answer rig.Answer
	f.eventually("it goes on", func() bool { answer = f.scale(5); return answer.Structured.Status == "succeeded" })
	f.eventually("the API server logs it", func() bool { return f.sent(answer.Structured.Op) == 1 })
	if f.sent(op) != 0 || strings.Contains(f.types(op), "exec") {
		t.Errorf("what was refused was sent: %s", f.types(op))
	}
	f.eventually("it is ready", func() bool { code, _ := f.ready(); return code == 200 })
	f.verified()
}

// The disk is full when a change has been sent: its result is kept back, its outcome is
// in the emergency file, and when there is room the server stores it by itself.
func TestDiskFullAtOutcome(t *testing.T) {
	f := newFault(t, "before exec.outcome 1 pwrite64 1 ENOSPC")
	op := f.answered(f.scale(5), "unknown", withheld)
	f.says("emergency.jsonl: countersign audit import that file")
	f.imports("0 imported, 0 in the log already") // the server is about to
	if err := os.WriteFile(f.room, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	f.eventually("the outcome is stored", func() bool { return strings.HasSuffix(f.types(op), "exec.outcome") })
	if answer, err := f.agent.Call(f.ctx, "get_operation", fmt.Sprintf(`{"op":%q}`, op)); err != nil || answer.Structured.Status != "succeeded" {
		t.Errorf("%+v, %v", answer, err)
	}
	if got := f.types(op); got != "tool.intent policy.decided exec.started exec.outcome" {
		t.Errorf("records: %s", got)
	}
	f.imports("0 imported, 1 in the log already")
	f.eventually("it goes on", func() bool { return f.scale(3).Structured.Status == "succeeded" })
	if f.sent(op) != 1 {
		t.Errorf("sent %d times", f.sent(op))
	}
	f.verified()
}

// The server ends before there is room. The next one finds out for itself what became
// of the change, and the import adds what the API server had answered.
func TestDiskFullUntilRestart(t *testing.T) {
	f := newFault(t, "before exec.outcome 1 pwrite64 1 ENOSPC")
	op := f.answered(f.scale(5), "unknown", withheld)
	f.restart()
	f.says("emergency.jsonl: countersign audit import that file")
	f.eventually("it is reconciled", func() bool { return strings.HasSuffix(f.types(op), "exec.reconciled=applied") })
	f.imports("1 imported, 0 in the log already")
	f.imports("0 imported, 1 in the log already")
	if got := f.types(op); got != "tool.intent policy.decided exec.started exec.unknown exec.reconciled=applied exec.outcome" {
		t.Errorf("records: %s", got)
	}
	records, err := f.server.Export(f.ctx)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range records {
		if marked := strings.Contains(r.Raw, `"imported":{"by":"`); marked != (r.Type == "exec.outcome" && r.Op == op) {
			t.Errorf("%s", r.Raw)
		}
	}
	f.eventually("the API server logs it once", func() bool { return f.sent(op) == 1 })
	f.verified()
	// Into the file of a server that does not run, and once more.
	if err := f.server.Stop(); err != nil {
		t.Fatal(err)
	}
	f.imports("0 imported, 1 in the log already")
	f.verified()
}

// A sync fails, or the disk takes no more writes for good: nothing is done any more
// until the restart, which finds out what is so.
func TestSyncFails(t *testing.T) {
	for _, row := range []struct {
		name, at string
		outcome  bool // it has been sent
		types    string
	}{
		{"of the pages at the intent", "before exec.started 1 fdatasync 1 EIO", false, "tool.intent"},
		{"of the meta page at the intent, which is there all the same", "before exec.started 1 fdatasync 2 EIO", false,
			"tool.intent policy.decided exec.started exec.unknown exec.reconciled=not_applied"},
		{"of the pages at the outcome", "before exec.outcome 1 fdatasync 1 EIO", true,
			"tool.intent policy.decided exec.started exec.unknown exec.reconciled=applied"},
		{"of the meta page at the outcome, which is there all the same", "before exec.outcome 1 fdatasync 2 EIO", true,
			"tool.intent policy.decided exec.started exec.outcome"},
		{"for lack of room", "before exec.outcome 1 fdatasync 1 ENOSPC", true,
			"tool.intent policy.decided exec.started exec.unknown exec.reconciled=applied"},
		{"not at all: the disk is read-only", "before exec.outcome 1 pwrite64 1 EROFS", true,
			"tool.intent policy.decided exec.started exec.unknown exec.reconciled=applied"},
	} {
		t.Run(row.name, func(t *testing.T) {
			f := newFault(t, row.at)
			want, reason, sent := "failed", none, 0
			if row.outcome {
				want, reason, sent = "unknown", withheld, 1
			}
			op := f.answered(f.scale(5), want, reason)
			if err := os.WriteFile(f.room, nil, 0o600); err != nil { // the disk is well again, and is not believed
				t.Fatal(err)
			}
			again := f.answered(f.scale(4), "failed", none)
			if code, text := f.ready(); code != 503 || !strings.Contains(text, "audit log: takes no records") {
				t.Errorf("ready: %d %s", code, text)
			}
			f.says("mend the cause, see docs/audit.md, and restart the server")
			f.restart()
			if !strings.HasPrefix(row.types, "tool.intent policy") {
				// What was not stored on its way to the disk leaves no operation.
				if got := f.types(op); got != "" && got != row.types {
					t.Errorf("records: %s", got)
				}
			} else {
				f.eventually("the restart finds out what is so: "+row.types, func() bool { return f.types(op) == row.types })
			}
			if row.outcome {
				known := strings.HasSuffix(row.types, "exec.outcome")
				f.imports(map[bool]string{true: "0 imported, 1 in the log already", false: "1 imported, 0 in the log already"}[known])
			}
			if answer := f.scale(3); answer.Structured.Status != "succeeded" {
				t.Errorf("%+v", answer)
			}
			if f.sent(op) != sent || f.sent(again) != 0 {
				t.Errorf("sent %d and %d times", f.sent(op), f.sent(again))
			}
			f.verified()
		})
	}
}

// The disk is full and freed, several times, while agents work (a limit of the process
// stands for the disk: the kernel's refusal is the same). What an agent was told to
// have succeeded is on record, and what the API server has done is, too.
func TestDiskFullUnderLoad(t *testing.T) {
	s := prepareStage(t, "  rules:\n  - {name: everything, effect: allow}\n")
	s.start()
	t.Cleanup(func() {
		if err := s.server.Stop(); err != nil {
			t.Error(err)
		}
	})
	limit := func(size uint64) {
		if err := setFileLimit(s.server.PID(), size); err != nil {
			t.Skip("the size of files cannot be limited from here: ", err)
		}
	}
	var mu sync.Mutex
	said := map[string]string{} // operation -> status
	stop := make(chan struct{})
	var agents sync.WaitGroup
	s.configMaps(4)
	for a := range 4 {
		agent := &rig.Agent{URL: s.server.URL, Token: world.token}
		if err := agent.Connect(s.ctx); err != nil {
			t.Fatal(err)
		}
		agents.Go(func() {
			for i := 0; ; i++ {
				select {
				case <-stop:
					return
				default:
				}
				answer, err := agent.Call(s.ctx, "patch_resource", fmt.Sprintf(`{"kind":"configmaps","namespace":%q,"name":"c%d","patch":"data: {value: v%d}"}`, s.namespace, a, i))
				if err != nil {
					t.Error(err)
					return
				}
				mu.Lock()
				said[answer.Structured.Op] = answer.Structured.Status
				mu.Unlock()
			}
		})
	}
	count := func(status string) (n int) {
		mu.Lock()
		defer mu.Unlock()
		for _, s := range said {
			if s == status {
				n++
			}
		}
		return n
	}
	for range 3 {
		done := count("succeeded")
		s.eventually("some succeed", func() bool { return count("succeeded") > done+10 })
		info, err := os.Stat(filepath.Join(filepath.Dir(s.server.Config), "data", "countersign.db"))
		if err != nil {
			t.Fatal(err)
		}
		failed := count("failed")
		limit(uint64(info.Size()) / 2)
		s.eventually("some are refused", func() bool { return count("failed") > failed+10 })
		limit(unix.RLIM_INFINITY)
	}
	done := count("succeeded")
	s.eventually("some succeed", func() bool { return count("succeeded") > done+10 })
	close(stop)
	agents.Wait()
	s.eventually("what could not be stored in its time is stored", func() bool {
		for op, status := range said {
			if status == "unknown" && !strings.HasSuffix(s.types(op), "exec.outcome") {
				return false
			}
		}
		return true
	})
	records, err := s.server.Export(s.ctx)
	if err != nil {
		t.Fatal(err)
	}
	started, ended := map[string]bool{}, map[string]int{}
	for _, r := range records {
		started[r.Op] = started[r.Op] || r.Type == "exec.started"
		if r.Type == "exec.outcome" && r.Outcome == "success" {
			ended[r.Op]++
		}
	}
	sent := executions(t)
	for op, status := range said {
		want := 0
		if status == "succeeded" || status == "unknown" {
			want = 1
		}
		if ended[op] != want {
			t.Errorf("%s was said to have %s; the log has %d outcomes", op, status, ended[op])
		}
		if sent[op] > 0 && !started[op] || status == "failed" && sent[op] > 0 || sent[op] > 1 {
			t.Errorf("%s was said to have %s, and was sent %d times; on record: %v", op, status, sent[op], started[op])
		}
	}
	t.Logf("%d succeeded, %d were refused, %d are unknown, of %d", count("succeeded"), count("failed"), count("unknown"), len(said))
	if text, err := s.server.Run(s.ctx, "audit", "verify"); err != nil {
		t.Errorf("%s%v", text, err)
	}
}

// mounted puts a file system of its own below the data folder.
func (s *stage) mounted(size string) (data string) {
	s.Helper()
	data = filepath.Join(filepath.Dir(s.server.Config), "data")
	if err := os.Mkdir(data, 0o700); err != nil {
		s.Fatal(err)
	}
	if err := mount(data, "size="+size, false); err != nil {
		if t, ok := s.TB.(*testing.T); ok {
			t.Skip("a file system can be mounted by root only: ", err)
		}
	}
	s.Cleanup(func() {
		if err := unmount(data); err != nil {
			s.Error(err)
		}
	})
	return data
}

// A volume that is nearly full: nothing begins, what ends something is stored, and
// when there is room again things go on.
func TestVolumeNearlyFull(t *testing.T) {
	s := prepareStage(t, "")
	data := s.mounted("100m")
	s.start()
	t.Cleanup(func() {
		if err := s.server.Stop(); err != nil {
			t.Error(err)
		}
	})
	s.connect()
	f := &fault{stage: s, data: data}
	op := s.scale(50).Structured.Op // waits for a person
	if err := os.WriteFile(filepath.Join(data, "filler"), make([]byte, 60<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	s.eventually("nothing begins", func() bool { return s.scale(5).Structured.Reason == full })
	f.says("MiB left: make it 64 at least")
	if _, err := s.server.Run(s.ctx, "approvals", "reject", op, "--reason", "no room"); err != nil {
		t.Error(err)
	}
	if _, err := s.server.Run(s.ctx, "lock", "add", "--everything", "--reason", "no room", "--for", "1h"); err != nil {
		t.Error(err)
	}
	if text, err := s.server.Run(s.ctx, "lock", "list", "-o", "json"); err != nil || !strings.Contains(text, "no room") {
		t.Errorf("%s, %v", text, err)
	} else if id := between(text, `"id": "`, `"`); id == "" {
		t.Errorf("no lock in %s", text)
	} else if _, err := s.server.Run(s.ctx, "lock", "remove", id); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filepath.Join(data, "filler")); err != nil {
		t.Fatal(err)
	}
	s.eventually("it goes on", func() bool { return s.scale(5).Structured.Status == "succeeded" })
	f.verified()
}

// between is what stands between two texts.
func between(text, before, after string) string {
	_, rest, _ := strings.Cut(text, before)
	found, _, _ := strings.Cut(rest, after)
	return found
}

// A page that is damaged under the running server: it sends nothing more, says so, and lives.
func TestDamagedWhileRunning(t *testing.T) {
	s := prepareStage(t, "")
	s.start()
	t.Cleanup(func() { s.server.Stop() })
	s.connect()
	f := &fault{stage: s}
	if answer := s.scale(5); answer.Structured.Status != "succeeded" {
		t.Fatalf("%+v", answer)
	}
	file, err := os.OpenFile(filepath.Join(filepath.Dir(s.server.Config), "data", "countersign.db"), os.O_RDWR, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer file.Close()
	info, err := file.Stat()
	if err == nil {
		_, err = file.WriteAt(bytes.Repeat([]byte{0xa5}, int(info.Size())-2*os.Getpagesize()), int64(2*os.Getpagesize()))
	}
	if err != nil {
		t.Fatal(err)
	}
	op := f.answered(s.scale(4), "failed", none)
	if code, text := f.ready(); code != 503 || !strings.Contains(text, "audit log: takes no records") {
		t.Errorf("ready: %d %s", code, text)
	}
	f.says("the file is damaged")
	if s.sent(op) != 0 {
		t.Error("it was sent")
	}
	if err := s.server.Stop(); err != nil {
		t.Log(err)
	}
	if err := s.server.Start(s.ctx); err == nil || !strings.Contains(err.Error(), "the file is damaged") {
		t.Errorf("it starts: %v", err)
	}
}

// What the server cannot go on with, it says at the start, and changes nothing.
func TestStartRefused(t *testing.T) {
	s := prepareStage(t, "")
	s.start()
	data := filepath.Join(filepath.Dir(s.server.Config), "data")
	file, key := filepath.Join(data, "countersign.db"), filepath.Join(data, "audit.key")
	// Another server on the same folder.
	elsewhere, err := os.ReadFile(s.server.Config)
	if err != nil {
		t.Fatal(err)
	}
	other := &rig.Server{Binary: s.server.Binary, Config: s.server.Config + ".other"}
	if err := os.WriteFile(other.Config, regexp.MustCompile(`(?m)^listen: .*$`).ReplaceAll(elsewhere, []byte("listen: 127.0.0.1:0")), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := other.Start(s.ctx); err == nil || !strings.Contains(err.Error(), "another process has the file open; is a server running on it already?") {
		t.Errorf("two servers: %v", err)
		other.Kill()
	}
	if _, err := s.server.Run(s.ctx, "audit", "verify"); err != nil {
		t.Errorf("the first server is hurt: %v", err)
	}
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
	good := map[string][]byte{}
	for _, path := range []string{file, file + ".key", key} {
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		good[path] = text
	}
	for _, row := range []struct {
		name, path string
		content    []byte // nil for none
		want       string
	}{
		{"an older file", file, bytes.ReplaceAll(good[file], []byte("countersign/2"), []byte("countersign/1")), `the file has format "countersign/1"; this version reads "countersign/2": begin a new log in another folder`},
		{"not a database", file, bytes.Repeat([]byte("x"), 64<<10), "invalid database"},
		{"a file that was cut", file, good[file][:4*os.Getpagesize()], "the file is damaged: "},
		{"an empty file", file, []byte{}, "the file is gone or empty, and the key audit.key of its log lies beside it"},
		{"no file", file, nil, "the file is gone or empty, and the key audit.key of its log lies beside it"},
		{"damaged pages", file, append(bytes.Clone(good[file][:2*os.Getpagesize()]), bytes.Repeat([]byte{0xa5}, len(good[file])-2*os.Getpagesize())...), "the file is damaged: "},
		{"no key of the store", file + ".key", nil, "reading the store's key: "},
		{"another key of the store", file + ".key", bytes.Repeat([]byte{7}, 32), "is not the one that the file was made with; put back the right one"},
		{"no key of the log", key, nil, "reading the key of the audit log: "},
		{"another key of the log", key, []byte("PRIVATE+KEY+other+7f4e6a5b+AaZ1tL5gTgNbCM5Nz4tfkzS1XR0sTZkJ9zJ3Y1nq8pBn\n"), "key of the audit log"},
	} {
		t.Run(row.name, func(t *testing.T) {
			defer func() {
				if err := os.WriteFile(row.path, good[row.path], 0o600); err != nil {
					t.Fatal(err)
				}
			}()
			err := os.Remove(row.path)
			if row.content != nil {
				err = os.WriteFile(row.path, row.content, 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			if err := s.server.Start(s.ctx); err == nil {
				s.server.Kill()
				t.Error("it starts")
			} else if !strings.Contains(err.Error(), row.want) {
				t.Errorf("%v; want %q", err, row.want)
			}
			now, err := os.ReadFile(row.path)
			if row.content != nil && (err != nil || !bytes.Equal(now, row.content)) || row.content == nil && err == nil {
				t.Errorf("it was changed, %v", err)
			}
		})
	}
	t.Run("as it was", func(t *testing.T) {
		if err := s.server.Start(s.ctx); err != nil {
			t.Fatal(err)
		}
		if err := s.server.Stop(); err != nil {
			t.Error(err)
		}
	})
}

// A folder that nothing can be written to.
func TestReadOnlyFolder(t *testing.T) {
	s := prepareStage(t, "")
	data := s.mounted("100m")
	s.start()
	if err := s.server.Stop(); err != nil {
		t.Fatal(err)
	}
	if err := mount(data, "", true); err != nil {
		t.Fatal(err)
	}
	if err := s.server.Start(s.ctx); err == nil || !strings.Contains(err.Error(), "countersign.db: read-only file system") {
		t.Errorf("%v", err)
	}
	if text, err := s.server.Run(s.ctx, "audit", "verify"); err != nil {
		t.Errorf("it cannot be looked at: %s%v", text, err)
	}
}
