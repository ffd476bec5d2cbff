package main

import (
	"cmp"
	"errors"
	"fmt"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"countersign/admin"
	"countersign/approvals"
)

func statusCommand(s *settings) *cobra.Command {
	var output string
	var check func() error
	status := &cobra.Command{
		Use:   "status",
		Short: "Show how the running server is",
		Long: `Show how the running server is: which policy is in force since when, and whether
what its folder holds now is that. Exits with 1 when something is wrong.`,
		Example: "  countersign status\n  countersign status -o json | jq -r .policy.digest",
		Args:    cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := check(); err != nil {
				return err
			}
			config, err := s.load()
			if err != nil {
				return err
			}
			status, err := admin.NewClient(config.AdminSocket).Status(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				err = writeJSON(cmd.OutOrStdout(), status)
			} else {
				table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
				fmt.Fprintf(table, "Version\t%s\n", status.Version)
				fmt.Fprintf(table, "Policy\t%s\n", status.Policy.Digest)
				fmt.Fprintf(table, "\tin force since %s, from %s\n", status.Policy.Since.UTC().Format(time.RFC3339), status.Policy.Folder)
				info := status.Policy.Info
				fmt.Fprintf(table, "\t%d rules, %d limits; guards off: %s\n", info.Rules, info.Limits, cmp.Or(strings.Join(info.GuardsOff, " "), "none"))
				for _, warning := range status.Policy.Warnings {
					fmt.Fprintf(table, "\twarning: %s\n", warning)
				}
				for _, l := range status.Locks {
					fmt.Fprintf(table, "Locked\t%s\n", approvals.Visible(l.Text()))
				}
				if slack := status.Slack; slack != nil {
					how := "connected"
					if !slack.Connected {
						how = "not connected: answers cannot come in; people can still use countersign approvals"
					}
					fmt.Fprintf(table, "Slack\t%s; operations to be told: %d\n", how, slack.Untold)
					if slack.Error != "" {
						fmt.Fprintf(table, "\tlast error at %s: %s\n", slack.ErrorTime.UTC().Format(time.RFC3339), approvals.Visible(slack.Error))
					}
				}
				err = table.Flush()
			}
			if bad := status.Policy.Error; err == nil && bad != "" {
				err = errors.New("the policy folder does not load since " + status.Policy.ErrorTime.UTC().Format(time.RFC3339) + "; the policy above stays in force\n" + strings.TrimSpace(bad))
			}
			return err
		},
	}
	check = outputFlag(status, &output)
	return status
}
