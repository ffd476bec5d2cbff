package rig

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

// Server is a countersign process and where it keeps its things.
type Server struct {
	Binary string
	// Config is the path of the configuration file; URL that of the endpoint.
	Config, URL string
	// Log, when set, receives what the process writes to stderr.
	Log io.Writer
	// Env are more environment variables for the process, NAME=VALUE.
	Env []string

	process *exec.Cmd
	exited  chan struct{}
	err     error
}

// BuildServer builds the countersign binary into dir.
func BuildServer(ctx context.Context, dir string, flags ...string) (string, error) {
	binary := filepath.Join(dir, "countersign")
	args := append(append([]string{"build"}, flags...), "-o", binary, "countersign/cmd/countersign")
	if out, err := exec.CommandContext(ctx, "go", args...).CombinedOutput(); err != nil {
		return "", fmt.Errorf("building countersign: %w\n%s", err, out)
	}
	return binary, nil
}

// FreeAddress is an address on this machine that nothing listens on now, and that
// is given out once. Its port is below those that systems give to connections, so
// that none takes it meanwhile.
func FreeAddress() (string, error) {
	const first, ports = 16384, 8192
	for range ports {
		port := first + (os.Getpid()*64+int(given.Add(1)))%ports
		if l, err := net.Listen("tcp", fmt.Sprintf("127.0.0.1:%d", port)); err == nil {
			return l.Addr().String(), l.Close()
		}
	}
	return "", errors.New("no port is free")
}

// given counts the addresses that were given out.
var given atomic.Int64

// Start starts the process and returns when it serves.
func (s *Server) Start(ctx context.Context) error {
	s.process = exec.Command(s.Binary, "serve", "--config", s.Config)
	s.process.Env = append(os.Environ(), s.Env...)
	started := &watch{needle: `"msg":"serving"`, seen: make(chan struct{}), log: s.Log}
	s.process.Stderr = started
	s.exited = make(chan struct{})
	if err := s.process.Start(); err != nil {
		return err
	}
	go func() {
		s.err = s.process.Wait()
		close(s.exited)
	}()
	select {
	case <-started.seen:
		return nil
	case <-s.exited:
		return fmt.Errorf("countersign ended while starting: %w\n%s", s.err, started.text())
	case <-ctx.Done():
		return errors.Join(ctx.Err(), s.Kill())
	}
}

// Stop asks the process to stop and waits for it.
func (s *Server) Stop() error {
	if s.process == nil {
		return nil
	}
	s.process.Process.Signal(syscall.SIGTERM)
	select {
	case <-s.exited:
		return s.err
	case <-time.After(60 * time.Second):
		return errors.Join(errors.New("countersign did not stop in 60 seconds"), s.Kill())
	}
}

// Signal sends the process a signal.
func (s *Server) Signal(signal os.Signal) error { return s.process.Process.Signal(signal) }

// Exited is closed when the process that was started last has ended.
func (s *Server) Exited() <-chan struct{} { return s.exited }

// PID is the process's id.
func (s *Server) PID() int { return s.process.Process.Pid }

// Kill ends the process at once, as a crash would (SIGKILL).
func (s *Server) Kill() error {
	s.process.Process.Kill()
	<-s.exited
	return nil
}

// Run runs another countersign command with the server's configuration.
func (s *Server) Run(ctx context.Context, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, s.Binary, append(args, "--config", s.Config)...)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("countersign %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return out.String(), nil
}

// Record is what a reader of an export needs of a line.
type Record struct {
	Seq     uint64 `json:"seq"`
	Type    string `json:"type"`
	Op      string `json:"op"`
	Session string `json:"session"`
	Outcome string `json:"outcome"`
	Tool    *struct {
		Name string `json:"name"`
	} `json:"tool"`
	Actions  []RecordAction `json:"actions"`
	Approval *struct {
		State string   `json:"state"`
		By    []string `json:"by"`
		Lock  string   `json:"lock"`
	} `json:"approval"`
	Evidence *struct {
		Result string `json:"result"`
	} `json:"evidence"`
	Policy *struct {
		Decision string   `json:"decision"`
		Rules    []string `json:"rules"`
	} `json:"policy"`
	Raw string `json:"-"`
}

// RecordAction is one request as a record tells it.
type RecordAction struct {
	Verb      string `json:"verb"`
	Resource  string `json:"resource"`
	Namespace string `json:"namespace"`
	Name      string `json:"name"`
	AuditID   string `json:"audit_id"`
}

// Export reads the audit log.
func (s *Server) Export(ctx context.Context) ([]Record, error) {
	text, err := s.Run(ctx, "audit", "export")
	if err != nil {
		return nil, err
	}
	var records []Record
	for line := range strings.Lines(text) {
		r := Record{Raw: strings.TrimSuffix(line, "\n")}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			return nil, fmt.Errorf("reading an exported record: %w", err)
		}
		records = append(records, r)
	}
	return records, nil
}

// watch copies a log and says when it has seen a text.
type watch struct {
	mu     sync.Mutex
	buf    bytes.Buffer
	needle string
	seen   chan struct{}
	done   bool
	log    io.Writer
}

func (w *watch) Write(p []byte) (int, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.log != nil {
		w.log.Write(p)
	}
	if !w.done {
		w.buf.Write(p)
		if w.done = bytes.Contains(w.buf.Bytes(), []byte(w.needle)); w.done {
			close(w.seen)
		}
	}
	return len(p), nil
}

func (w *watch) text() string {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.buf.String()
}

// WriteFiles writes files below dir, by name.
func WriteFiles(dir string, files map[string]string) error {
	for name, text := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
			return err
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			return err
		}
	}
	return nil
}

// Replace replaces a text in a file, where it must stand.
func Replace(path, from, to string) error {
	text, err := os.ReadFile(path)
	if err != nil {
		return err
	}
	if !bytes.Contains(text, []byte(from)) {
		return fmt.Errorf("%s does not hold %q", path, from)
	}
	return os.WriteFile(path, bytes.Replace(text, []byte(from), []byte(to), 1), 0o600)
}
