package main

import (
	"errors"
	"fmt"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"countersign/admin"
	"countersign/approvals"
)

func lockCommand(s *settings) *cobra.Command {
	root := &cobra.Command{
		Use:     "lock",
		Aliases: []string{"locks"},
		Short:   "Stop agents at once, whatever policy and approvers say",
		Long: `Stop agents at once, whatever policy and approvers say. From when "lock add"
returns, calls that the lock is about are denied, what waits for approval is
withdrawn, and a command that runs in a pod is cut off. A request that is on its
way to the API server is not called back.`,
		RunE: subcommand,
	}
	client := func() (*admin.Client, error) {
		config, err := s.load()
		if err != nil {
			return nil, err
		}
		return admin.NewClient(config.AdminSocket), nil
	}
	var l approvals.Lock
	var everything bool
	var lasts time.Duration
	add := &cobra.Command{
		Use: "add", Short: "Set a lock; what you leave out is locked for all values", Args: cobra.NoArgs,
		Example: "  countersign lock add --principal bot@example.com --reason 'deletes what it should not'\n" +
			"  countersign lock add --cluster production --namespace shop --for 2h --reason 'the sale'\n" +
			"  countersign lock add --everything --reason 'incident 4711'",
		RunE: func(cmd *cobra.Command, _ []string) error {
			if named := l.Principal+l.Tool+l.Cluster+l.Namespace != ""; named == everything {
				return errors.New("name what to lock: --principal, --tool, --cluster, --namespace, or --everything alone")
			}
			if l.Reason == "" {
				return errors.New("say why with --reason: agents and approvers are told")
			}
			if lasts < 0 {
				return errors.New("--for must be more than 0")
			}
			if lasts > 0 {
				l.Expires = time.Now().Add(lasts)
			}
			c, err := client()
			if err != nil {
				return err
			}
			set, err := c.Lock(cmd.Context(), l)
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s: %s\n%d waiting operations withdrawn, %d running commands cut off\n",
				set.ID, approvals.Visible(set.Text()), set.Withdrawn, set.CutOff)
			return err
		},
	}
	add.Flags().StringVar(&l.Principal, "principal", "", "halt calls of this user name, subject or client, or for this person")
	add.Flags().StringVar(&l.Tool, "tool", "", "halt calls of this tool")
	add.Flags().StringVar(&l.Cluster, "cluster", "", "halt calls about this cluster")
	add.Flags().StringVar(&l.Namespace, "namespace", "", "halt calls about this namespace")
	add.Flags().BoolVar(&everything, "everything", false, "halt every call")
	add.Flags().DurationVar(&lasts, "for", 0, "how long it holds; until it is removed when absent")
	add.Flags().StringVar(&l.Reason, "reason", "", "why; needed")

	var output string
	var check func() error
	list := &cobra.Command{
		Use: "list", Short: "List the locks that hold, oldest first", Example: "  countersign lock list", Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := check(); err != nil {
				return err
			}
			c, err := client()
			if err != nil {
				return err
			}
			all, err := c.Locks(cmd.Context())
			if err != nil {
				return err
			}
			if output == "json" {
				return writeJSON(cmd.OutOrStdout(), all)
			}
			if len(all) == 0 {
				_, err := fmt.Fprintln(cmd.OutOrStdout(), "Nothing is locked.")
				return err
			}
			table := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(table, "LOCK\tWHAT\tENDS\tSET BY\tREASON")
			for _, l := range all {
				ends := "when removed"
				if !l.Expires.IsZero() {
					ends = "in " + time.Until(l.Expires).Round(time.Second).String()
				}
				fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", l.ID, approvals.Visible(l.What()), ends, approvals.Visible(l.By), approvals.Visible(l.Reason))
			}
			return table.Flush()
		},
	}
	check = outputFlag(list, &output)
	remove := &cobra.Command{
		Use: "remove LOCK", Short: "Remove a lock", Example: "  countersign lock remove 0198c0de-...", Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := client()
			if err != nil {
				return err
			}
			l, err := c.Unlock(cmd.Context(), args[0])
			if err != nil {
				return err
			}
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is removed: %s is no longer locked by it\n", l.ID, approvals.Visible(l.What()))
			return err
		},
	}
	root.AddCommand(add, list, remove)
	return root
}
