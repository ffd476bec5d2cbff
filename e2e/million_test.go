package e2e

import (
	"context"
	"fmt"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"countersign/audit/logtest"
	"countersign/e2e/rig"
	"countersign/gate"
	"countersign/storage"
)

const million = 1_000_000

// BenchmarkMillion is what the server and the commands do with a log of a million
// records.
func BenchmarkMillion(b *testing.B) {
	dir := b.TempDir()
	server, err := newServer(dir, world.cluster.Kubeconfig)
	if err != nil {
		b.Fatal(err)
	}
	if err := fillStore(b.Context(), filepath.Join(dir, "data", "countersign.db")); err != nil {
		b.Fatal(err)
	}

	b.Run("ready", func(b *testing.B) { // from the process's start to being told that it is ready
		for b.Loop() {
			if err := ready(b.Context(), server); err != nil {
				b.Fatal(err)
			}
			b.StopTimer()
			if err := server.Stop(); err != nil {
				b.Fatal(err)
			}
			b.StartTimer()
		}
	})

	if err := server.Start(b.Context()); err != nil {
		b.Fatal(err)
	}
	defer server.Stop()
	export, checkpoint := filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "audit.checkpoint")
	for _, row := range []struct {
		name, output string
		args         []string
	}{
		{"export", export, []string{"audit", "export", "--checkpoint", checkpoint}},
		{"verify", os.DevNull, []string{"audit", "verify"}},
		{"verify-export", os.DevNull, []string{"audit", "verify", export, "--checkpoint", checkpoint, "--key", filepath.Join(dir, "data", "audit.pub")}},
	} {
		b.Run(row.name, func(b *testing.B) {
			var most float64
			for b.Loop() {
				rss, err := command(server, row.output, row.args...)
				if err != nil {
					b.Fatal(err)
				}
				most = max(most, rss)
			}
			b.ReportMetric(float64(b.N)*million/b.Elapsed().Seconds(), "records/s")
			b.ReportMetric(most, "RSS-MB")
		})
	}
	anon, _ := rig.Memory(server.PID())
	b.Logf("the server has allocated %.0f MB", anon)
}

// fillStore makes a store of a million records.
func fillStore(ctx context.Context, path string) (err error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	s, err := storage.Open(path, storage.Options{Origin: strings.TrimPrefix(audience, "http://")})
	if err != nil {
		return err
	}
	maker := logtest.New(1)
	entries := make([]gate.Entry, 5000)
	for n := 0; n < million && err == nil; n += len(entries) {
		for i := range entries {
			made := maker.Next()
			entries[i] = gate.Entry{Record: made.Record, Payload: made.Payload}
		}
		err = s.Commit(ctx, gate.Batch{Entries: entries})
	}
	if closed := s.Close(); err == nil {
		err = closed
	}
	return err
}

// ready starts a server and returns when /readyz says that it serves.
func ready(ctx context.Context, server *rig.Server) error {
	ctx, cancel := context.WithTimeout(ctx, time.Minute)
	defer cancel()
	started := make(chan error, 1)
	go func() { started <- server.Start(ctx) }()
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, strings.TrimSuffix(server.URL, "/mcp")+"/readyz", nil)
	if err != nil {
		return err
	}
	for {
		resp, err := http.DefaultClient.Do(req)
		if err == nil {
			resp.Body.Close()
			if resp.StatusCode == http.StatusOK {
				return <-started
			}
		}
		select {
		case <-time.After(time.Millisecond): // refused: it does not listen yet
		case <-ctx.Done():
			return fmt.Errorf("the server was never ready: %w, %w", ctx.Err(), <-started)
		}
	}
}

// command runs a command of the server's with its output to a file, and returns the
// most memory that it was seen with, in MB.
func command(server *rig.Server, output string, args ...string) (most float64, err error) {
	out, err := os.Create(output)
	if err != nil {
		return 0, err
	}
	defer out.Close()
	cmd := exec.Command(server.Binary, append(args, "--config", server.Config)...)
	var said strings.Builder
	cmd.Stdout, cmd.Stderr = out, &said
	if err := cmd.Start(); err != nil {
		return 0, err
	}
	done := make(chan error, 1)
	go func() { done <- cmd.Wait() }()
	for tick := time.Tick(20 * time.Millisecond); ; {
		select {
		case err := <-done:
			if err != nil {
				err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, said.String())
			}
			return most, err
		case <-tick:
			_, rss := rig.Memory(cmd.Process.Pid)
			most = max(most, rss)
		}
	}
}
