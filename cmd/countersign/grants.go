package main

import (
	"cmp"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"countersign/admin"
	"countersign/approvals"
)

func grantsCommand(s *settings) *cobra.Command {
	root := &cobra.Command{
		Use:   "grants",
		Short: "List and take back consent to kinds of change",
		Long: `List and take back grants: consent that approvers gave to a kind of change for a
time, so that the same agent may do the like again without being asked.`,
		RunE: subcommand,
	}
	var output, reason string
	var check func() error
	list := &cobra.Command{
		Use: "list", Short: "List the grants that hold, oldest first", Example: "  countersign grants list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := check(); err != nil {
				return err
			}
			config, err := s.load()
			if err != nil {
				return err
			}
			grants, err := admin.NewClient(config.AdminSocket).Grants(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), grants)
			}
			if len(grants) == 0 {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "No grant holds.")
				return err
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "GRANT\tFOR\tTOOL\tGIVEN BY\tUSES\tENDS\tWHAT")
			for _, g := range grants {
				ends := "in " + time.Until(g.Expires).Round(time.Second).String()
				if g.Revoked != "" {
					ends = "revoked by " + g.Revoked
				}
				kinds := make([]string, len(g.Kinds))
				for i, k := range g.Kinds {
					kinds[i] = k.String()
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%d\t%s\t%s\n", g.ID, approvals.Visible(g.Principal.String()), g.Tool,
					approvals.Visible(strings.Join(g.By(), ", ")), g.Uses, approvals.Visible(ends), approvals.Visible(strings.Join(kinds, "; ")))
			}
			return table.Flush()
		},
	}
	check = outputFlag(list, &output)
	revoke := &cobra.Command{
		Use: "revoke GRANT", Short: "Take a grant back; nothing starts under it any more",
		Example: "  countersign grants revoke 0198c0de-... --reason 'the incident is over'", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			config, err := s.load()
			if err != nil {
				return err
			}
			g, err := admin.NewClient(config.AdminSocket).Revoke(cmd.Context(), args[0], reason)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is revoked by %s; it was used %d times\n", g.ID, cmp.Or(g.Revoked, "nobody"), g.Uses)
			return err
		},
	}
	revoke.Flags().StringVar(&reason, "reason", "", "why, for the audit log")
	root.AddCommand(list, revoke)
	return root
}
