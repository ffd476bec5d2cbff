package main

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// grace is how long a process may take to end after SIGTERM.
const grace = 5 * time.Second

// process is one running component.
type process struct {
	name string
	cmd  *exec.Cmd
	log  string        // path of the file with its output
	done chan struct{} // closed when it has ended
	err  error         // how it ended; valid after done
}

// processes are the components of one cluster, in the order of their start.
type processes struct {
	bin, dir string
	running  []*process
	ended    chan *process
}

// start runs a binary of the cache folder. The caller must have locked its goroutine to
// its thread and keep both for as long as the child shall live: see childAttr.
func (ps *processes) start(name string, args ...string) error {
	p := &process{
		name: name,
		cmd:  exec.Command(filepath.Join(ps.bin, name), args...),
		log:  filepath.Join(ps.dir, "logs", name+".log"),
		done: make(chan struct{}),
	}
	log, err := os.OpenFile(p.log, os.O_CREATE|os.O_TRUNC|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	defer log.Close()
	p.cmd.Stdout, p.cmd.Stderr = log, log
	p.cmd.Dir = ps.dir
	// Nothing of the user's environment, so that a cluster is the same everywhere and
	// reads no kubeconfig or kwok settings from a home folder.
	p.cmd.Env = []string{"HOME=" + ps.dir, "TMPDIR=" + os.TempDir()}
	p.cmd.SysProcAttr = childAttr()
	if err := p.cmd.Start(); err != nil {
		return fmt.Errorf("starting %s: %w", name, err)
	}
	ps.running = append(ps.running, p)
	go func() {
		p.err = p.cmd.Wait()
		close(p.done)
		ps.ended <- p
	}()
	return nil
}

// restart kills a process, as a crash would, and starts it again in its place.
func (ps *processes) restart(name string) error {
	i := slices.IndexFunc(ps.running, func(p *process) bool { return p.name == name })
	killed := ps.running[i]
	killed.cmd.Process.Kill() // an error says that it has just ended, which is as good
	if ended := <-ps.ended; ended != killed {
		return ended.failure()
	}
	if err := ps.start(name, killed.cmd.Args[1:]...); err != nil {
		return err
	}
	last := len(ps.running) - 1
	ps.running[i], ps.running = ps.running[last], ps.running[:last]
	return nil
}

// stop ends the processes in the reverse order of their start, so that each ends while
// what it depends on still answers, and returns when all of them are gone.
func (ps *processes) stop() {
	for i := len(ps.running) - 1; i >= 0; i-- {
		p := ps.running[i]
		select {
		case <-p.done:
			continue // its id may be somebody else's by now
		default:
		}
		// The negative id is the group. An error says that it has just ended, which is fine.
		syscall.Kill(-p.cmd.Process.Pid, syscall.SIGTERM)
		select {
		case <-p.done:
		case <-time.After(grace):
			syscall.Kill(-p.cmd.Process.Pid, syscall.SIGKILL)
			<-p.done
		}
	}
	ps.running = nil
}

// failure describes an end that nobody asked for, with the last lines of its log.
func (p *process) failure() error {
	log, err := os.ReadFile(p.log)
	if err != nil {
		log = []byte(err.Error())
	}
	if strings.Contains(string(log), "address already in use") {
		return fmt.Errorf("%s: %w", p.name, errAddressInUse)
	}
	lines := strings.Split(strings.TrimSpace(string(log)), "\n")
	lines = lines[max(0, len(lines)-15):]
	how := "exit status 0"
	if p.err != nil {
		how = p.err.Error()
	}
	return fmt.Errorf("%s ended by itself (%s); the end of %s:\n%s", p.name, how, p.log, strings.Join(lines, "\n"))
}

// errAddressInUse says that somebody took a port between our choosing and using it, so
// that the start is worth repeating.
var errAddressInUse = errors.New("address already in use")
