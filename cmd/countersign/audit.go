package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"countersign/admin"
	"countersign/audit"
	"countersign/configs"
	"countersign/storage"
)

func auditCommand(s *settings) *cobra.Command {
	root := &cobra.Command{
		Use:   "audit",
		Short: "Read the audit log",
		Long: `Read the audit log: through the running server, or from its file when no server
runs. Reading is not recorded.`,
		RunE: subcommand,
	}
	root.AddCommand(exportCommand(s), searchCommand(s), sessionsCommand(s), showCommand(s), proofCommand(s), verifyCommand(s), checkpointsCommand(s), replayCommand(s), importCommand(s))
	return root
}

// openLog opens the log through the running server, or else its file.
func openLog(ctx context.Context, config *configs.Config) (audit.Log, func(), error) {
	log := admin.NewClient(config.AdminSocket).Log(ctx)
	_, err := log.Checkpoint()
	if !errors.Is(err, admin.ErrNoServer) {
		return log, func() {}, err
	}
	store, err := storage.Open(config.Store(), storage.Options{ReadOnly: true})
	if err != nil {
		return nil, nil, fmt.Errorf("no server answers on %s, and the file does not open either: %w", config.AdminSocket, err)
	}
	return store, func() { store.Close() }, nil
}

// reading is what commands do that read the log.
func reading(cmd *cobra.Command, s *settings, read func(log audit.Log) error) error {
	config, err := s.load()
	if err != nil {
		return err
	}
	log, done, err := openLog(cmd.Context(), config)
	if err != nil {
		return err
	}
	defer done()
	return read(log)
}

// filters are the flags that say which records are looked for.
type filters struct {
	query        audit.Query
	since, until string
	names        []string // of the flags
}

// add gives a command those of the flags that it names, and all without names.
func (f *filters) add(cmd *cobra.Command, names ...string) {
	for _, flag := range []struct {
		name  string
		value *string
		usage string
	}{
		{"principal", &f.query.Principal, "who asked: a user name, a subject, or for whom an agent acts"},
		{"session", &f.query.Session, "session"},
		{"op", &f.query.Op, "operation"},
		{"type", &f.query.Type, "type of record, such as exec.outcome"},
		{"tool", &f.query.Tool, "tool"},
		{"cluster", &f.query.Cluster, "cluster of a request"},
		{"namespace", &f.query.Namespace, "namespace of a request"},
		{"resource", &f.query.Resource, "resource of a request, such as deployments or apps/v1/deployments"},
		{"name", &f.query.Name, "name of the object of a request"},
		{"outcome", &f.query.Outcome, strings.Join(outcomes, ", ")},
		{"since", &f.since, "from this time on: 2026-01-31T08:00:00Z, or how long ago, such as 2h or 7d"},
		{"until", &f.until, "before this time"},
		{"text", &f.query.Text, "text anywhere in the record"},
	} {
		if len(names) == 0 || slices.Contains(names, flag.name) {
			cmd.Flags().StringVar(flag.value, flag.name, "", flag.usage)
			f.names = append(f.names, flag.name)
		}
	}
}

var outcomes = []string{audit.Success, audit.Failure, audit.Denied, audit.Pending, audit.Unknown}

// read is the query that the flags make.
func (f *filters) read(cmd *cobra.Command, now time.Time) (audit.Query, error) {
	q := f.query
	for _, name := range f.names {
		// An empty value, as of a variable that a script did not set, would find everything.
		if flag := cmd.Flags().Lookup(name); flag.Changed && flag.Value.String() == "" {
			return q, fmt.Errorf("--%s is empty; leave it out to find all", name)
		}
	}
	if q.Outcome != "" && !slices.Contains(outcomes, q.Outcome) {
		return q, fmt.Errorf("--outcome %s: one of %s is expected", q.Outcome, strings.Join(outcomes, ", "))
	}
	var err error
	if q.Since, err = readTime("since", f.since, now); err != nil {
		return q, err
	}
	if q.Until, err = readTime("until", f.until, now); err != nil {
		return q, err
	}
	if !q.Since.IsZero() && !q.Until.IsZero() && !q.Since.Before(q.Until) {
		return q, fmt.Errorf("--since %s is not before --until %s", f.since, f.until)
	}
	return q, nil
}

// readTime reads a time, or how long before now it is. An empty text is no time.
func readTime(flag, text string, now time.Time) (time.Time, error) {
	if text == "" {
		return time.Time{}, nil
	}
	if t, err := time.Parse(time.RFC3339, text); err == nil && 1970 <= t.Year() && t.Year() < 2262 {
		return t.UTC(), nil
	}
	if days, found := strings.CutSuffix(text, "d"); found {
		if n, err := strconv.ParseUint(days, 10, 15); err == nil {
			return now.AddDate(0, 0, -int(n)).UTC(), nil
		}
	}
	if d, err := time.ParseDuration(text); err == nil && d >= 0 {
		return now.Add(-d).UTC(), nil
	}
	return time.Time{}, fmt.Errorf("--%s %s: a time such as %s is expected, or how long ago it is, such as 2h or 7d", flag, text, now.UTC().Format(time.RFC3339))
}

// writeFile puts a file in the place of what is there, whole or not at all.
func writeFile(path string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	err = errors.Join(err, f.Chmod(0o644), f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		os.Remove(f.Name())
	}
	return err
}
