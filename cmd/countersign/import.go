package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/user"
	"time"

	"github.com/spf13/cobra"

	"countersign/admin"
	"countersign/approvals"
	"countersign/audit"
	"countersign/configs"
	"countersign/gate"
	"countersign/storage"
)

func importCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "import FILE",
		Short: "Add the outcomes of an emergency file to the audit log",
		Long: `Add to the audit log the outcomes that it could not take when they came, from the
emergency file that the server wrote them to: through the running server, or into the
log's own file when no server runs. Each is marked with who imported it and when. What
the log has already is left out, so that it can be repeated. A file with a line that is
not this log's own is refused whole, but for a last line that was cut off.`,
		Example: "  countersign audit import /var/lib/countersign/emergency.jsonl",
		Args:    cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := s.load()
			if err != nil {
				return err
			}
			f, err := os.Open(args[0])
			if err != nil {
				return err
			}
			defer f.Close()
			file, err := io.ReadAll(io.LimitReader(f, storage.MaxEmergency+1))
			if err != nil {
				return err
			}
			done, err := admin.NewClient(config.AdminSocket).Import(cmd.Context(), file)
			if errors.Is(err, admin.ErrNoServer) {
				done, err = importHere(cmd.Context(), config, file)
			}
			if err != nil {
				return fmt.Errorf("importing %s: %w", args[0], err)
			}
			out := cmd.OutOrStdout()
			fmt.Fprintf(out, "%d imported, %d in the log already\n", done.Added, done.Known)
			if done.Cut {
				fmt.Fprintln(cmd.ErrOrStderr(), "countersign: the last line was cut off when it was written, and is left out")
			}
			if done.Held > 0 {
				_, err = fmt.Fprintf(out, "%d are left to the server, which still tries to store them: import the file again later\n", done.Held)
			} else {
				_, err = fmt.Fprintf(out, "%s can be taken away now\n", approvals.Visible(args[0]))
			}
			return err
		},
	}
}

// importHere adds to the file itself.
func importHere(ctx context.Context, config *configs.Config, file []byte) (done gate.Imported, err error) {
	if _, err := os.Stat(config.Store()); err != nil {
		return done, fmt.Errorf("no server answers on %s, and there is no log either: %w", config.AdminSocket, err)
	}
	store, err := storage.Open(config.Store(), storage.Options{MaxBytes: int(config.MaxStoreBytes), Messenger: config.Slack != nil})
	if err != nil {
		return done, fmt.Errorf("no server answers on %s, and the file does not open either: %w", config.AdminSocket, err)
	}
	defer func() { err = errors.Join(err, store.Close()) }()
	who := approvals.Person{ID: fmt.Sprintf("local:%d", os.Getuid())}
	if u, err := user.Current(); err == nil {
		who.Name = u.Username
	}
	return store.Import(ctx, file, audit.Imported{By: who.String(), Time: time.Now().UTC()}, func(string) bool { return false })
}

// importInto leaves to the gate what it still tries to store itself.
func importInto(g *gate.Gate, store *storage.Store) func(context.Context, []byte, audit.Imported) (gate.Imported, error) {
	return func(ctx context.Context, file []byte, by audit.Imported) (done gate.Imported, err error) {
		err = g.Importing(func(held func(string) bool) error {
			done, err = store.Import(ctx, file, by, held)
			return err
		})
		return done, err
	}
}
