package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"countersign/admin"
	"countersign/approvals"
	"countersign/audit"
	"countersign/configs"
	"countersign/gate"
	"countersign/identity"
	"countersign/kube"
	"countersign/storage"
)

func statusCommand(s *settings) *cobra.Command {
	var output string
	var check func() error
	status := &cobra.Command{
		Use:   "status",
		Short: "Show how the running server is",
		Long: `Show how the running server is: which policy is in force since when, and whether
what its folder holds now is that; which clusters can be reached, with what
credential and until when; who and what is locked, and what waits; and where the
log was last anchored. Exits with 1 when something is wrong.`,
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
				showClusters(table, status.Clusters)
				for _, issuer := range slices.Sorted(maps.Keys(status.Issuers)) {
					fmt.Fprintf(table, "Issuer\t%s: nobody of it can log in: %s\n", approvals.Visible(issuer), approvals.Visible(status.Issuers[issuer]))
				}
				for _, l := range status.Locks {
					fmt.Fprintf(table, "Locked\t%s %s: %s\n", approvals.Visible(l.What()), l.Until(), approvals.Visible(l.Reason))
				}
				if slack := status.Slack; slack != nil {
					how := "connected"
					switch {
					case !slack.Connected:
						how = "not connected: answers cannot come in; people can still use countersign approvals"
					case slack.Error != "":
						how = "answers come in, but Slack refuses requests"
					}
					shown := "every question is shown as it stands"
					if slack.Untold > 0 {
						shown = fmt.Sprintf("questions not shown as they stand: %d", slack.Untold)
					}
					fmt.Fprintf(table, "Slack\t%s; %s\n", how, shown)
					if slack.Error != "" {
						fmt.Fprintf(table, "\tlast error at %s: %s\n", slack.ErrorTime.UTC().Format(time.RFC3339), approvals.Visible(slack.Error))
					}
				}
				showState(table, status)
				err = table.Flush()
			}
			if bad := status.Policy.Error; err == nil && bad != "" {
				err = errors.New("the policy folder does not load since " + status.Policy.ErrorTime.UTC().Format(time.RFC3339) + "; the policy above stays in force\n" + strings.TrimSpace(bad))
			}
			if bad := status.Log.Error; bad != "" {
				err = errors.Join(err, errors.New("audit log: "+approvals.Visible(bad)))
			}
			if path := status.Log.Emergency; path != "" {
				err = errors.Join(err, fmt.Errorf("audit log: outcomes wait in %s: countersign audit import that file, then take it away", approvals.Visible(path)))
			}
			for _, issuer := range slices.Sorted(maps.Keys(status.Issuers)) {
				err = errors.Join(err, fmt.Errorf("issuer %s: %s", approvals.Visible(issuer), approvals.Visible(status.Issuers[issuer])))
			}
			for _, c := range status.Clusters {
				if c.Error != "" {
					err = errors.Join(err, fmt.Errorf("cluster %s: %s", c.Name, approvals.Visible(c.Error)))
				}
			}
			for _, a := range status.Anchors {
				if a.Error != "" {
					err = errors.Join(err, fmt.Errorf("anchor %s: %s", approvals.Visible(a.Name), approvals.Visible(a.Error)))
				}
			}
			return err
		},
	}
	check = outputFlag(status, &output)
	return status
}

func showClusters(w io.Writer, clusters []admin.ClusterStatus) {
	for _, c := range clusters {
		how := "reachable"
		if !c.Reachable {
			how = "not reachable"
		}
		if c.User != "" {
			how += ", as " + approvals.Visible(c.User)
		}
		if c.Impersonates {
			how += "; impersonates the callers"
		}
		fmt.Fprintf(w, "Cluster %s\t%s: %s\n\t%s\n", c.Name, c.Server, how, approvals.Visible(c.Credential))
		if c.Error != "" {
			fmt.Fprintf(w, "\terror: %s\n", approvals.Visible(c.Error))
		}
	}
}

func showState(w io.Writer, status admin.Status) {
	fmt.Fprintf(w, "Waiting\t%d operations for approval\n", status.Waiting)
	if status.Log.Seq > 0 {
		fmt.Fprintf(w, "Log\trecord %d at %s\n", status.Log.Seq, status.Log.Time.UTC().Format(time.RFC3339))
		fmt.Fprintf(w, "Log key\t%s\n", status.Log.Key)
	}
	showAnchors(w, status.Anchors)
	if e := status.LastError; e != nil {
		fmt.Fprintf(w, "Last error\tat %s: %s\n", e.Time.UTC().Format(time.RFC3339), approvals.Visible(e.Message))
	}
}

// clusterStatus puts what kube says into the form of the admin socket.
func clusterStatus(clusters []kube.Status) []admin.ClusterStatus {
	out := make([]admin.ClusterStatus, len(clusters))
	for i, c := range clusters {
		out[i] = admin.ClusterStatus(c)
	}
	return out
}

// issuersWithoutKeys are those whose tokens cannot be checked, and why.
func issuersWithoutKeys(ctx context.Context, authenticator *identity.Authenticator) map[string]string {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	out := map[string]string{}
	for issuer, err := range authenticator.Unready(ctx) {
		out[issuer] = audit.MaskText(err.Error())
	}
	return out
}

// impersonate says to kube what the configuration does.
func impersonate(c *configs.Impersonate) *kube.Impersonate {
	if c == nil {
		return nil
	}
	i := &kube.Impersonate{ServiceAccountIssuer: c.ServiceAccountIssuer, Extra: c.Extra}
	for to, prefix := range map[*string]*string{&i.UsernamePrefix: c.UsernamePrefix, &i.GroupsPrefix: c.GroupsPrefix} {
		if prefix != nil {
			*to = *prefix
		}
	}
	return i
}

// waiting counts what waits for approval.
func waiting(store gate.Store) int {
	open, err := store.OpenOperations()
	if err != nil {
		return -1
	}
	n := 0
	for _, op := range open {
		if op.State == approvals.PendingApproval {
			n++
		}
	}
	return n
}

// logStatus is the newest record, and what is wrong with the log.
func logStatus(store *storage.Store, emergency *storage.Emergency) admin.LogStatus {
	status := admin.LogStatus{Emergency: emergency.Waiting()}
	if err := store.Room(); err != nil {
		status.Error = err.Error()
	}
	seq, record, err := store.Head()
	var r struct {
		Time time.Time `json:"time"`
	}
	if err == nil && json.Unmarshal(record, &r) == nil {
		status.Seq, status.Time = seq, r.Time
	}
	status.Key, _ = store.PublicKey()
	return status
}

// lastError remembers what was last logged as an error.
type lastError struct {
	latest atomic.Pointer[admin.ErrorStatus]
}

func (l *lastError) last() *admin.ErrorStatus { return l.latest.Load() }

// watch passes everything on.
func (l *lastError) watch(next slog.Handler) slog.Handler { return errorWatcher{next, l} }

type errorWatcher struct {
	slog.Handler
	to *lastError
}

func (w errorWatcher) Handle(ctx context.Context, r slog.Record) error {
	if r.Level >= slog.LevelError {
		text := r.Message
		r.Attrs(func(a slog.Attr) bool {
			if a.Key == "err" {
				text += ": " + a.Value.String()
			}
			return true
		})
		w.to.latest.Store(&admin.ErrorStatus{Time: r.Time, Message: audit.MaskText(strings.ToValidUTF8(text[:min(len(text), maxError)], ""))})
	}
	return w.Handler.Handle(ctx, r)
}

func (w errorWatcher) WithAttrs(attrs []slog.Attr) slog.Handler {
	return errorWatcher{w.Handler.WithAttrs(attrs), w.to}
}

func (w errorWatcher) WithGroup(name string) slog.Handler {
	return errorWatcher{w.Handler.WithGroup(name), w.to}
}

// maxError bounds what is kept of it, in bytes.
const maxError = 2 << 10
