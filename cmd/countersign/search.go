package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/spf13/cobra"

	"countersign/approvals"
	"countersign/audit"
)

// errEnough ends a search that has found as many as are shown.
var errEnough = errors.New("enough")

func searchCommand(s *settings) *cobra.Command {
	var f filters
	var output string
	var limit int
	search := &cobra.Command{
		Use:   "search [TEXT]",
		Short: "Show records of the audit log, newest first",
		Long: `Show records of the audit log, newest first: those with a text, in whatever field,
and of which all filters hold.`,
		Example: "  countersign audit search --namespace shop --since 2h\n" +
			"  countersign audit search 'connection refused' --outcome failure\n" +
			"  countersign audit search --resource secrets -o jsonl | jq .principal.username",
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "text" && output != "json" && output != "jsonl" {
				return fmt.Errorf("-o %s: text, json or jsonl is expected", output)
			}
			if limit < 1 {
				return errors.New("--limit is at least 1")
			}
			q, err := f.read(cmd, time.Now())
			if err != nil {
				return err
			}
			if len(args) == 1 {
				if q.Text != "" || args[0] == "" {
					return errors.New("the text to look for is empty, or given twice")
				}
				q.Text = args[0]
			}
			return reading(cmd, s, func(log audit.Log) error { return runSearch(cmd, log, &q, limit, output) })
		},
	}
	f.add(search)
	search.Flags().IntVar(&limit, "limit", 50, "how many are shown at most")
	search.Flags().StringVarP(&output, "output", "o", "text", "text, json, or jsonl: the records as they are stored")
	return search
}

func runSearch(cmd *cobra.Command, log audit.Log, q *audit.Query, limit int, output string) error {
	out := bufio.NewWriter(cmd.OutOrStdout())
	table := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	writeRow := func(_ uint64, leaf []byte) error { return writeRecord(table, leaf) }
	shown := 0
	switch output {
	case "jsonl":
		writeRow = audit.JSONL(out)
	case "json":
		writeRow = func(_ uint64, leaf []byte) error {
			if shown > 0 {
				out.WriteString(",\n")
			}
			_, err := out.Write(leaf)
			return err
		}
		out.WriteByte('[')
	default:
		fmt.Fprintln(table, "TIME\tWHO\tTOOL\tWHAT\tOUTCOME\tOP\tSEQ")
	}
	more := false
	err := log.Search(q, 1, 0, true, func(seq uint64, leaf []byte) error {
		if more = shown == limit; more {
			return errEnough
		}
		err := writeRow(seq, leaf)
		shown++
		return err
	})
	if errors.Is(err, errEnough) {
		err = nil
	}
	if output == "json" {
		out.WriteString("]\n")
	}
	if shown > 0 || output != "text" {
		err = errors.Join(err, table.Flush(), out.Flush())
	}
	switch {
	case err != nil:
	case shown == 0:
		_, err = fmt.Fprintln(cmd.ErrOrStderr(), "countersign: no record matches")
	case more:
		_, err = fmt.Fprintf(cmd.ErrOrStderr(), "countersign: there are more; --limit shows more than %d\n", limit)
	}
	return err
}

func writeRecord(table *tabwriter.Writer, leaf []byte) error {
	var r audit.Record
	if err := json.Unmarshal(leaf, &r); err != nil {
		return fmt.Errorf("reading a record: %w", err)
	}
	_, err := fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\t%s\t%d\n", r.Time.UTC().Format(time.RFC3339), cell(who(&r), 60), cell(toolName(&r), 40), cell(what(&r), 100),
		cell(r.Outcome, 20), cell(r.Op, 40), r.Seq)
	return err
}

func who(r *audit.Record) string {
	if r.Principal == nil {
		return ""
	}
	return r.Principal.String()
}

func toolName(r *audit.Record) string {
	if r.Tool == nil {
		return ""
	}
	return r.Tool.Name
}

// what says in a few words what a record is about.
func what(r *audit.Record) string {
	text := r.Type
	switch {
	case r.Type == audit.PolicyDecided && r.Policy != nil:
		text += " " + r.Policy.Decision
	case r.Approval != nil && r.Approval.Vote != "":
		text += " " + r.Approval.Vote + " by " + strings.Join(r.Approval.By, ", ")
	case r.Approval != nil && r.Approval.State != "":
		text += " " + r.Approval.State
	case r.Evidence != nil:
		text += " " + r.Evidence.Result
	case r.End != nil:
		text += " " + r.End.Reason
	case r.Cluster != nil:
		text += " " + r.Cluster.Name + ": " + cmp.Or(r.Cluster.UID, "not known which")
	case r.Checkpoint != nil:
		text += fmt.Sprintf(" of %d records in %s", r.Checkpoint.Size, cmp.Or(strings.Join(r.Checkpoint.Anchors, ", "), "nothing"))
		if failed := r.Checkpoint.Failed; len(failed) > 0 {
			text += "; not in " + strings.Join(failed, ", ")
		}
	case audit.RetentionOf(r) != nil:
		text += " " + takenOut(audit.RetentionOf(r))
	}
	if r.Imported != nil {
		text += ", imported by " + r.Imported.By
	}
	if len(r.Actions) > 0 {
		text += ": " + r.Actions[0].String()
		if n := len(r.Actions) - 1 + r.MoreActions; n > 0 {
			text += fmt.Sprintf(" and %d more", n)
		}
	}
	if r.Error != nil {
		text += ": " + r.Error.Message
	}
	return text
}

// cell is a text that others may have written, for a table; - where it is empty.
func cell(text string, most int) string {
	if text == "" {
		return "-"
	}
	text = approvals.Visible(text)
	if utf8.RuneCountInString(text) > most {
		text = string([]rune(text)[:most-3]) + "..."
	}
	return text
}
