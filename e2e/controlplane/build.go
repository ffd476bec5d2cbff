package main

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// stages are the lifecycles, from kwok's own source, that our nodes and pods follow:
// everything becomes ready at once, and jobs complete.
var stages = []string{
	"node/fast/node-initialize.yaml",
	"node/heartbeat-with-lease/node-heartbeat-with-lease.yaml",
	"pod/fast/pod-ready.yaml",
	"pod/fast/pod-complete.yaml",
	"pod/fast/pod-delete.yaml",
}

// errInterrupted says that the user wanted the end, which is no failure once a cluster runs.
var errInterrupted = errors.New("interrupted")

// stagesFile is where the stages stand in the cache folder, so that starting needs
// neither the go command nor the module cache.
const stagesFile = "stages.yaml"

// build returns the folder with the binaries that the module's go.mod names, and
// compiles them first if this was not yet done. Progress goes to the progress writer.
//
// The folder's name is derived from go.mod and go.sum, and a folder appears under its
// name only when it is whole: a crash leaves a .tmp folder, which the next build removes.
func build(ctx context.Context, module string, progress io.Writer) (string, error) {
	bin, err := cacheFolder(module)
	if err != nil {
		return "", err
	}
	if exists(bin) {
		return bin, nil
	}

	if err := os.MkdirAll(filepath.Dir(bin), 0o755); err != nil {
		return "", fmt.Errorf("making the cache folder: %w; COUNTERSIGN_CACHE names another place", err)
	}
	unlock, err := lock(ctx, bin+".lock", func() {
		fmt.Fprintln(progress, "controlplane: waiting for another build of the control plane to finish")
	})
	if err != nil {
		return "", fmt.Errorf("locking the cache folder: %w", err)
	}
	defer unlock()
	if exists(bin) {
		return bin, nil
	}

	tmp := bin + ".tmp"
	if err := os.RemoveAll(tmp); err != nil {
		return "", fmt.Errorf("removing an unfinished build: %w", err)
	}
	if err := compile(ctx, module, tmp, progress); err != nil {
		os.RemoveAll(tmp)
		return "", fmt.Errorf("building the control plane: %w", err)
	}
	if err := os.Rename(tmp, bin); err != nil {
		return "", fmt.Errorf("finishing the build: %w", err)
	}
	return bin, nil
}

func cacheFolder(module string) (string, error) {
	sum := sha256.New()
	for _, name := range []string{"go.mod", "go.sum"} {
		content, err := os.ReadFile(filepath.Join(module, name))
		if err != nil {
			return "", fmt.Errorf("reading the module: %w; run in e2e/controlplane or name it with --module", err)
		}
		if name == "go.mod" && !bytes.Contains(content, []byte("k8s.io/kubernetes/cmd/kube-apiserver")) {
			return "", fmt.Errorf("reading the module: %s does not name the control plane as its tools; run in e2e/controlplane or name it with --module", filepath.Join(module, name))
		}
		sum.Write(content)
	}

	root := os.Getenv("COUNTERSIGN_CACHE")
	if root == "" {
		user, err := os.UserCacheDir()
		if err != nil {
			return "", fmt.Errorf("finding the cache folder: %w; COUNTERSIGN_CACHE can name one", err)
		}
		root = filepath.Join(user, "countersign")
	}
	root, err := filepath.Abs(root)
	if err != nil {
		return "", fmt.Errorf("finding the cache folder: %w", err)
	}
	name := fmt.Sprintf("%x-%s-%s", sum.Sum(nil)[:8], runtime.GOOS, runtime.GOARCH)
	return filepath.Join(root, "controlplane", name), nil
}

func compile(ctx context.Context, module, tmp string, progress io.Writer) error {
	// The child dies with the thread that started it: see childAttr.
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()

	g := goCommand{module: module, gotmp: filepath.Join(tmp, "work"), progress: progress}
	if err := os.MkdirAll(g.gotmp, 0o755); err != nil {
		return err
	}
	fmt.Fprintln(progress, "controlplane: building Kubernetes, etcd and kwok from source; once, about 8 minutes on two cores")
	version, err := g.run(ctx, 0, "list", "-m", "-f", "{{.Version}}", "k8s.io/kubernetes")
	if err != nil {
		return err
	}
	packages, err := g.run(ctx, 0, "list", "-deps", "tool")
	if err != nil {
		return err
	}

	// Without its version in it, the server says v0.0.0 and kubectl complains.
	major, minor, _ := strings.Cut(strings.TrimPrefix(version, "v"), ".")
	minor, _, _ = strings.Cut(minor, ".")
	const stamp = " -X k8s.io/component-base/version."
	ldflags := "-s -w" + stamp + "gitVersion=" + version + stamp + "gitMajor=" + major + stamp + "gitMinor=" + minor
	_, err = g.run(ctx, strings.Count(packages, "\n")+1,
		"build", "-v", "-ldflags", ldflags, "-o", tmp+string(filepath.Separator), "tool")
	if err != nil {
		return err
	}
	// The package of etcd's main is called server.
	if err := os.Rename(filepath.Join(tmp, "server"), filepath.Join(tmp, "etcd")); err != nil {
		return err
	}

	kwok, err := g.run(ctx, 0, "list", "-m", "-f", "{{.Dir}}", "sigs.k8s.io/kwok")
	if err != nil {
		return err
	}
	var all []byte
	for _, stage := range stages {
		content, err := os.ReadFile(filepath.Join(kwok, "kustomize", "stage", filepath.FromSlash(stage)))
		if err != nil {
			return fmt.Errorf("copying kwok's stages: %w", err)
		}
		all = append(append(all, "---\n"...), content...)
	}
	if err := os.WriteFile(filepath.Join(tmp, stagesFile), all, 0o644); err != nil {
		return err
	}
	return os.RemoveAll(g.gotmp)
}

// goCommand runs the go command in the module.
type goCommand struct {
	module   string
	gotmp    string // for what go puts into a temporary folder
	progress io.Writer
}

// run returns what go printed. What it says on the way becomes lines of progress, and part
// of the error if it fails. total is the number of packages that it may have to compile.
func (g goCommand) run(ctx context.Context, total int, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, "go", args...)
	cmd.Dir = g.module
	cmd.Env = append(os.Environ(),
		"GOWORK=off",        // a workspace around us would change the versions
		"GOTMPDIR="+g.gotmp, // an interrupted go leaves hundreds of megabytes there
	)
	cmd.SysProcAttr = childAttr()
	cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGTERM) }
	cmd.WaitDelay = grace
	var stdout bytes.Buffer
	cmd.Stdout = &stdout

	read, write := io.Pipe()
	cmd.Stderr = write
	m := &meter{out: g.progress, total: total}
	finished := make(chan struct{})
	go func() {
		defer close(finished)
		m.run(read)
	}()
	err := cmd.Run()
	write.Close()
	<-finished

	switch {
	case ctx.Err() != nil:
		return "", errInterrupted
	case errors.Is(err, exec.ErrNotFound):
		return "", errors.New("the go command is not in PATH; install Go from https://go.dev/dl")
	case err != nil:
		return "", fmt.Errorf("go %s: %w:\n%s", args[0], err, strings.Join(m.tail, "\n"))
	}
	return strings.TrimSpace(stdout.String()), nil
}

// meter turns what the go command says on standard error into a line of progress every
// ten seconds.
type meter struct {
	out   io.Writer
	total int // packages in the build; 0 when nothing is compiled

	mu       sync.Mutex
	compiled int
	last     string
	tail     []string // the last lines, for the error
}

func (m *meter) run(stderr io.Reader) {
	start := time.Now()
	tick := time.NewTicker(10 * time.Second)
	defer tick.Stop()
	done := make(chan struct{})
	go func() {
		defer close(done)
		for lines := bufio.NewScanner(stderr); lines.Scan(); {
			m.add(lines.Text())
		}
		io.Copy(io.Discard, stderr)
	}()
	for {
		select {
		case <-done:
			return
		case <-tick.C:
			fmt.Fprintf(m.out, "controlplane: %s: %s\n", time.Since(start).Round(time.Second), m.state())
		}
	}
}

func (m *meter) state() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	switch {
	case m.last == "":
		return "linking, everything else is in Go's build cache"
	case m.total == 0:
		return m.last
	default:
		return fmt.Sprintf("%d of at most %d packages compiled, latest %s", m.compiled, m.total, m.last)
	}
}

func (m *meter) add(line string) {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.last = line
	// With -v, go prints the path of each package that it compiles, and nothing else
	// without a space in it.
	if !strings.Contains(line, " ") {
		m.compiled++
	}
	if m.tail = append(m.tail, line); len(m.tail) > 30 {
		m.tail = m.tail[1:]
	}
}

// lock takes an exclusive lock on a file, which it creates. If somebody else has it, lock
// calls waiting once and then waits for it; with waiting nil it gives up. The lock goes
// when the process ends, however it ends.
func lock(ctx context.Context, path string, waiting func()) (unlock func(), err error) {
	file, err := os.OpenFile(path, os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	for told := false; ; {
		err := syscall.Flock(int(file.Fd()), syscall.LOCK_EX|syscall.LOCK_NB)
		if err == nil {
			return func() { file.Close() }, nil
		}
		if !errors.Is(err, syscall.EWOULDBLOCK) || waiting == nil {
			file.Close()
			return nil, &os.PathError{Op: "flock", Path: path, Err: err}
		}
		if !told {
			waiting()
			told = true
		}
		select {
		case <-time.After(200 * time.Millisecond):
		case <-ctx.Done():
			file.Close()
			return nil, errInterrupted
		}
	}
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
