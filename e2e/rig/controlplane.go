package rig

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"
)

// ControlPlane is a running Kubernetes API.
type ControlPlane struct {
	Kubeconfig string `json:"kubeconfig"`
	Kubectl    string `json:"kubectl"`
	Server     string `json:"server"`
	Issuer     string `json:"issuer"`
	CA         string `json:"ca"`
	AuditLog   string `json:"audit_log"`

	process *exec.Cmd
	stdin   io.Closer
	lines   chan []byte // what it says on stdout, once each time that it is ready
}

// StartControlPlane builds the control plane when needed, starts it in dir,
// and lets service-account tokens be minted for the audience. Progress goes to
// progress. Close stops it; so does the end of this process, however it ends.
// flags are more flags of "controlplane up".
func StartControlPlane(ctx context.Context, dir, audience string, progress io.Writer, flags ...string) (*ControlPlane, error) {
	module, err := moduleDir("countersign/e2e/controlplane", "e2e/controlplane")
	if err != nil {
		return nil, err
	}
	launcher := filepath.Join(dir, "controlplane")
	if out, err := exec.CommandContext(ctx, "go", "build", "-C", module, "-o", launcher, ".").CombinedOutput(); err != nil {
		return nil, fmt.Errorf("building the control plane's launcher: %w\n%s", err, out)
	}
	flags = append([]string{"up", "--stdin", "--module", module, "--dir", filepath.Join(dir, "cluster"), "--audience", audience}, flags...)
	process := exec.Command(launcher, flags...)
	process.Stderr = progress
	stdin, err := process.StdinPipe()
	if err != nil {
		return nil, err
	}
	stdout, err := process.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := process.Start(); err != nil {
		return nil, fmt.Errorf("starting the control plane: %w", err)
	}
	c := &ControlPlane{process: process, stdin: stdin, lines: make(chan []byte)}
	go func() {
		defer close(c.lines)
		for out := bufio.NewReader(stdout); ; {
			line, err := out.ReadBytes('\n')
			if err != nil {
				return
			}
			c.lines <- line
		}
	}()
	line, err := c.ready(ctx)
	if err == nil {
		err = json.Unmarshal(line, c)
	}
	if err != nil {
		return nil, errors.Join(fmt.Errorf("starting the control plane: %w", err), c.Close())
	}
	return c, nil
}

func (c *ControlPlane) ready(ctx context.Context) ([]byte, error) {
	select {
	case line, ok := <-c.lines:
		if !ok {
			return nil, io.ErrUnexpectedEOF
		}
		return line, nil
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// RestartAPIServer kills the API server, as a crash would, and returns when a new one
// is ready. What it stores outlives it.
func (c *ControlPlane) RestartAPIServer(ctx context.Context) error {
	if c.process == nil {
		return errors.New("restarting the API server: this cluster was there before")
	}
	if err := c.process.Process.Signal(syscall.SIGUSR1); err != nil {
		return fmt.Errorf("restarting the API server: %w", err)
	}
	if _, err := c.ready(ctx); err != nil {
		return fmt.Errorf("restarting the API server: %w", err)
	}
	return nil
}

// ExistingCluster is the cluster that a kubeconfig names, as it is.
func ExistingCluster(kubeconfig string) (*ControlPlane, error) {
	kubectl, err := exec.LookPath("kubectl")
	if err != nil {
		return nil, fmt.Errorf("KUBECONFIG is set, but there is no kubectl to prepare that cluster with: %w", err)
	}
	return &ControlPlane{Kubeconfig: kubeconfig, Kubectl: kubectl}, nil
}

// Close stops what StartControlPlane started.
func (c *ControlPlane) Close() error {
	if c.process == nil {
		return nil
	}
	c.stdin.Close()
	done := make(chan error, 1)
	go func() { done <- c.process.Wait() }()
	select {
	case err := <-done:
		return err
	case <-time.After(30 * time.Second):
		c.process.Process.Kill()
		return errors.New("the control plane did not stop in 30 seconds and was killed")
	}
}

// Run runs kubectl and returns what it printed.
func (c *ControlPlane) Run(ctx context.Context, stdin string, args ...string) (string, error) {
	cmd := exec.CommandContext(ctx, c.Kubectl, append([]string{"--kubeconfig", c.Kubeconfig}, args...)...)
	cmd.Stdin = strings.NewReader(stdin)
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	if err := cmd.Run(); err != nil {
		return out.String(), fmt.Errorf("kubectl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(errOut.String()))
	}
	return strings.TrimSpace(out.String()), nil
}

// moduleDir finds a folder of this repository from within it.
func moduleDir(module, path string) (string, error) {
	dir, err := os.Getwd()
	if err != nil {
		return "", err
	}
	for {
		candidate := filepath.Join(dir, path)
		if data, err := os.ReadFile(filepath.Join(candidate, "go.mod")); err == nil && strings.HasPrefix(string(data), "module "+module+"\n") {
			return candidate, nil
		}
		parent := filepath.Dir(dir)
		if parent == dir {
			return "", fmt.Errorf("finding %s: run this from within the repository", path)
		}
		dir = parent
	}
}
