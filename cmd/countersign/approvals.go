package main

import (
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"countersign/admin"
	"countersign/approvals"
)

func approvalsCommand(s *settings) *cobra.Command {
	var output string
	root := &cobra.Command{
		Use:   "approvals",
		Short: "List and decide what agents ask for",
		Long: `List and decide what agents ask for, over the running server's admin socket. You
are who the kernel says you are; the configuration says which approver sets that is in.`,
		RunE: subcommand,
	}
	root.PersistentFlags().StringVarP(&output, "output", "o", "text", "text or json")
	client := func() (*admin.Client, error) {
		if output != "text" && output != "json" {
			return nil, fmt.Errorf("-o %s: text or json", output)
		}
		config, err := s.load()
		if err != nil {
			return nil, err
		}
		return admin.NewClient(config.AdminSocket), nil
	}
	one := func(use, short, example string, call func(*cobra.Command, *admin.Client, string) (approvals.Operation, error), text func(io.Writer, approvals.Operation) error) *cobra.Command {
		return &cobra.Command{
			Use: use, Short: short, Example: example, Args: cobra.ExactArgs(1),
			RunE: func(cmd *cobra.Command, args []string) error {
				c, err := client()
				if err != nil {
					return err
				}
				op, err := call(cmd, c, args[0])
				if err != nil {
					return err
				}
				if output == "json" {
					return writeJSON(cmd.OutOrStdout(), op)
				}
				return text(cmd.OutOrStdout(), op)
			},
		}
	}
	var reason string
	var kind bool
	vote := func(approve bool) func(*cobra.Command, *admin.Client, string) (approvals.Operation, error) {
		return func(cmd *cobra.Command, c *admin.Client, id string) (approvals.Operation, error) {
			return c.Vote(cmd.Context(), id, approvals.Ballot{Approve: approve, Reason: reason, Grant: kind})
		}
	}
	approve := one("approve OP", "Approve an operation; the server then runs it",
		"  countersign approvals approve 0198c0de-... --reason 'planned, CHG-1234'", vote(true), writeVoted)
	reject := one("reject OP", "Reject an operation; the agent is told the reason",
		"  countersign approvals reject 0198c0de-... --reason 'wait until the sale is over'", vote(false), writeVoted)
	approve.Flags().BoolVar(&kind, "kind", false, "approve this kind of change for a time, as approvals show says")
	approve.Flags().StringVar(&reason, "reason", "", "why; some rules ask for it")
	reject.Flags().StringVar(&reason, "reason", "", "why; needed")

	root.AddCommand(&cobra.Command{
		Use: "list", Short: "List what is open, oldest first", Example: "  countersign approvals list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			ops, err := c.Operations(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), ops)
			}
			return writeList(cmd.OutOrStdout(), ops)
		},
	}, one("show OP", "Show one operation with what would change", "  countersign approvals show 0198c0de-...",
		func(cmd *cobra.Command, c *admin.Client, id string) (approvals.Operation, error) {
			return c.Operation(cmd.Context(), id)
		},
		func(w io.Writer, op approvals.Operation) error {
			_, err := io.WriteString(w, approvals.Text(op))
			return err
		}), approve, reject)
	return root
}

func writeVoted(w io.Writer, op approvals.Operation) error {
	var err error
	switch op.State {
	case approvals.Authorized:
		_, err = fmt.Fprintf(w, "%s approved; the server looks again at what would change and then runs it\n", op.ID)
		if err == nil && op.Gave != "" {
			_, err = fmt.Fprintf(w, "grant %s covers this kind for %s; countersign grants revoke %[1]s takes it back\n", op.Gave, op.GrantFor)
		}
	case approvals.Rejected:
		_, err = fmt.Fprintf(w, "%s rejected\n", op.ID)
	default:
		_, err = fmt.Fprintf(w, "%s has your vote; %d more needed\n", op.ID, op.Missing())
	}
	return err
}

func writeList(w io.Writer, ops []approvals.Operation) error {
	if len(ops) == 0 {
		_, err := fmt.Fprintln(w, "Nothing is open.")
		return err
	}
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "OP\tSTATE\tASKED BY\tWHAT\tEXPIRES")
	for _, op := range ops {
		what := make([]string, len(op.Plan.Actions))
		for i, a := range op.Plan.Actions {
			what[i] = a.String()
		}
		expires := "-"
		if !op.Expires.IsZero() {
			expires = "in " + time.Until(op.Expires).Round(time.Second).String()
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", op.ID, op.State, approvals.Visible(op.Principal.String()),
			approvals.Visible(strings.Join(what, ", ")), expires)
	}
	return table.Flush()
}

func writeJSON(w io.Writer, v any) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}
