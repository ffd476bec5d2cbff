package main

import (
	"bufio"
	"errors"
	"fmt"
	"io"

	"github.com/spf13/cobra"

	"countersign/admin"
	"countersign/audit"
	"countersign/configs"
	"countersign/storage"
)

func auditCommand(s *settings) *cobra.Command {
	root := &cobra.Command{Use: "audit", Short: "Read the audit log", RunE: subcommand}
	var from uint64
	export := &cobra.Command{
		Use:   "export",
		Short: "Write the audit log as JSONL, one record a line, byte for byte as stored",
		Long: `Write the audit log as JSONL, one record a line, byte for byte as stored: through
the running server, or from the file itself when no server runs.`,
		Example: "  countersign audit export > audit.jsonl\n  countersign audit export --from 1001 | jq 'select(.outcome == \"denied\")'",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			config, err := s.load()
			if err != nil {
				return err
			}
			out := bufio.NewWriter(cmd.OutOrStdout())
			err = admin.NewClient(config.AdminSocket).Export(cmd.Context(), from, out)
			if errors.Is(err, admin.ErrNoServer) {
				err = exportFile(config, from, out)
			}
			return errors.Join(err, out.Flush())
		},
	}
	export.Flags().Uint64Var(&from, "from", 1, "sequence number of the first record to write")
	root.AddCommand(export, verifyCommand(s), checkpointsCommand(s), replayCommand(s))
	return root
}

func exportFile(config *configs.Config, from uint64, w io.Writer) error {
	store, err := storage.Open(config.Store(), storage.Options{ReadOnly: true})
	if err != nil {
		return fmt.Errorf("no server answers on %s, and the file does not open either: %w", config.AdminSocket, err)
	}
	defer store.Close()
	return store.Records(from, audit.JSONL(w))
}
