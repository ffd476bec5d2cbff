package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/mod/sumdb/note"

	"countersign/admin"
	"countersign/approvals"
	"countersign/audit"
	"countersign/configs"
	"countersign/storage"
)

func verifyCommand(s *settings) *cobra.Command {
	var key, output string
	var files []string
	var check func() error
	verify := &cobra.Command{
		Use:   "verify [EXPORT]",
		Short: "Check that nobody changed the audit log",
		Long: `Check that nobody changed the audit log since it was signed: that no record was
edited, removed or put in another place, that none is missing at the end, and that it
is the log that earlier checkpoints are of.

With EXPORT, a file of audit export, nothing else of Countersign is needed: give the
checkpoint that was exported with it (--checkpoint), and the public key (--key), which
should have come to you by another way than the log.

Without EXPORT the log of this machine is checked, with its hashes and payloads: through
the running server, or in the file when no server runs. The key is then audit.pub in
the data folder, unless --key says another. The file that checkpoints are anchored in is
looked at too; those that you kept elsewhere (--checkpoint; see audit checkpoints) show
what somebody did who could change that file as well.

Exits with 1 when something is wrong.`,
		Example: "  countersign audit verify\n  countersign audit verify --checkpoint kept-elsewhere.txt\n  countersign audit verify audit.jsonl --checkpoint audit.checkpoint --key audit.pub",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := check(); err != nil {
				return err
			}
			var signed [][]byte
			for _, name := range files {
				text, err := os.ReadFile(name)
				if err != nil {
					return fmt.Errorf("reading a checkpoint: %w", err)
				}
				found := audit.Checkpoints(text)
				if len(found) == 0 {
					return fmt.Errorf("reading a checkpoint: %s holds none", name)
				}
				signed = append(signed, found...)
			}
			var report audit.Report
			var err error
			if len(args) == 1 {
				report, err = verifyExport(args[0], key, signed)
			} else {
				report, err = verifyHere(cmd.Context(), s, key, signed, cmd.ErrOrStderr())
			}
			if err != nil {
				return err
			}
			if output == "json" {
				err = writeJSON(cmd.OutOrStdout(), report)
			} else {
				err = showReport(cmd.OutOrStdout(), report)
			}
			return errors.Join(err, findings(report))
		},
	}
	verify.Flags().StringVar(&key, "key", "", "the log's public key, or a file that holds it")
	verify.Flags().StringArrayVar(&files, "checkpoint", nil, "file of one or more signed checkpoints; may be given again")
	check = outputFlag(verify, &output)
	return verify
}

// publicKey reads a key that is written out, or in a file.
func publicKey(key string) (note.Verifier, string, error) {
	text := key
	if data, err := os.ReadFile(key); err == nil {
		text = strings.TrimSpace(string(data))
	} else if strings.Count(key, "+") < 2 {
		return nil, "", fmt.Errorf("reading the public key: %w", err)
	}
	v, err := note.NewVerifier(text)
	if err != nil {
		return nil, "", fmt.Errorf("reading the public key %s: %w; a key such as audit.pub in the server's data folder is expected, name+hash+key", key, err)
	}
	return v, text, nil
}

func verifyExport(name, key string, signed [][]byte) (audit.Report, error) {
	if key == "" || len(signed) == 0 {
		return audit.Report{}, errors.New("an export is checked against a checkpoint and the public key: give both, --checkpoint FILE and --key FILE")
	}
	verifier, _, err := publicKey(key)
	if err != nil {
		return audit.Report{}, err
	}
	file, err := os.Open(name)
	if err != nil {
		return audit.Report{}, err
	}
	defer file.Close()
	report, err := audit.VerifyExport(file, verifier, signed)
	if err != nil {
		err = fmt.Errorf("reading %s: %w", name, err)
	}
	return report, err
}

func verifyHere(ctx context.Context, s *settings, key string, signed [][]byte, warnings io.Writer) (audit.Report, error) {
	config, err := s.load()
	if err != nil {
		return audit.Report{}, err
	}
	if key == "" {
		key = filepath.Join(config.Data, "audit.pub")
	}
	verifier, text, err := publicKey(key)
	if err != nil {
		return audit.Report{}, err
	}
	v := admin.Verification{Key: text}
	if file := config.AnchorFile(); file != "" {
		text, err := os.ReadFile(file)
		switch {
		case errors.Is(err, fs.ErrNotExist):
			fmt.Fprintf(warnings, "countersign: the file of anchored checkpoints %s is not there: a log that was put back to an earlier state is not found out\n", file)
		case err != nil:
			return audit.Report{}, fmt.Errorf("reading the anchored checkpoints: %w", err)
		case len(audit.Checkpoints(text)) == 0:
			fmt.Fprintf(warnings, "countersign: the file of anchored checkpoints %s is empty: a log that was put back to an earlier state is not found out\n", file)
		}
		signed = append(signed, audit.Checkpoints(text)...)
	}
	for _, c := range signed {
		v.Checkpoints = append(v.Checkpoints, string(c))
	}
	report, err := admin.NewClient(config.AdminSocket).Verify(ctx, v)
	if errors.Is(err, admin.ErrNoServer) {
		report, err = verifyFile(ctx, config, verifier, signed)
	}
	// The record of it is signed like all others, so whoever has the key can write one.
	keep := config.Audit.Retention
	if p := report.Retention; p != nil && (keep == configs.Retention{} || keep.Records == 0 && p.RecordsBefore > 0) {
		fmt.Fprintf(warnings, "countersign: %s were taken out, as record %d says, and audit.retention of the configuration does not: if it never did, somebody has removed them\n", takenOut(p), p.Seq)
	}
	return report, err
}

func verifyFile(ctx context.Context, config *configs.Config, key note.Verifier, signed [][]byte) (audit.Report, error) {
	store, err := storage.Open(config.Store(), storage.Options{ReadOnly: true})
	if err != nil {
		return audit.Report{}, fmt.Errorf("no server answers on %s, and the file does not open either: %w", config.AdminSocket, err)
	}
	defer store.Close()
	return store.Verify(ctx, key, signed)
}

func showReport(w io.Writer, r audit.Report) error {
	records := fmt.Sprintf("records %d to %d", r.First, r.Size)
	if r.Size < r.First {
		records = "no records"
	}
	_, err := fmt.Fprintf(w, "log          %s\n             %s\nroot         %s\ncheckpoints  %d that it agrees with\n", approvals.Visible(r.Origin), records, r.Root, r.Checkpoints)
	if err == nil && r.Unchecked > 0 {
		_, err = fmt.Fprintf(w, "             %d of before the first record that is there\n", r.Unchecked)
	}
	if p := r.Retention; err == nil && p != nil {
		_, err = fmt.Fprintf(w, "taken out    by retention, %s, as record %d of %s says\n", takenOut(p), p.Seq, p.Time.UTC().Format(time.RFC3339))
	}
	if err == nil && len(r.Findings) == 0 {
		_, err = fmt.Fprintln(w, "The log is as it was signed.")
	}
	return err
}

func takenOut(p *audit.Retention) string {
	text := fmt.Sprintf("payloads before record %d", p.PayloadsBefore)
	if p.RecordsBefore > 0 {
		text += fmt.Sprintf(" and records before %d", p.RecordsBefore)
	}
	return text
}

// findings are what is wrong, as an error.
func findings(r audit.Report) error {
	if len(r.Findings) == 0 {
		return nil
	}
	lines := []string{"the log is not as it was signed:"}
	for _, f := range r.Findings {
		lines = append(lines, strings.ReplaceAll(f.Kind, "_", " ")+": "+approvals.Visible(f.Text))
	}
	if r.More > 0 {
		lines = append(lines, fmt.Sprintf("and %d more findings", r.More))
	}
	return errors.New(strings.Join(lines, "\n"))
}
