package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/google/uuid"
	"github.com/spf13/cobra"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
	"countersign/gate"
	"countersign/kube"
	"countersign/replay"
)

// divergedCode is what the program ends with when a replay ended otherwise than the
// log tells.
const divergedCode = 3

func replayCommand(s *settings) *cobra.Command {
	var to kube.Config
	var cluster, output string
	var timeout time.Duration
	cmd := &cobra.Command{
		Use:   "replay SESSION --kubeconfig SANDBOX",
		Short: "Repeat what a session changed in a sandbox cluster, and report what differs",
		Long: `Repeat what a session changed in a sandbox cluster, and report what differs from
what is on record. The log comes from the running server, or from its file when no
server runs; requests go from here to the sandbox, with the credential of its
kubeconfig, and through no server. Stand-ins take the place of secret values.

A cluster that the log knows is refused, before anything is written. Take one that
is empty and can be thrown away.

Exit code 0: all ended as on record. 3: something differs. 1: it could not be found out.`,
		Example: "  countersign audit replay gap:0190f3a2 --kubeconfig sandbox.kubeconfig\n" +
			"  countersign audit replay gap:0190f3a2 --kubeconfig sandbox.kubeconfig -o json | jq '.steps[] | select(.result == \"diverged\")'",
		Args: cobra.ExactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if output != "" && output != "json" {
				return fmt.Errorf("there is no output format %q; json is the only one", output)
			}
			if to.Kubeconfig == "" { // which would be the cluster that this runs in
				return errors.New("--kubeconfig is empty: it names the file with the credential for the sandbox")
			}
			if timeout <= 0 {
				return errors.New("--timeout is to be more than 0s")
			}
			to.Name = sandboxName
			clusters, err := kube.New([]kube.Config{to}, "countersign-replay/"+version, timeout)
			if err != nil {
				return err
			}
			return reading(cmd, s, func(log audit.Log) error {
				report, err := replay.Run(cmd.Context(), replayed(log), sandbox{clusters, timeout}, args[0], cluster)
				if report != nil {
					err = errors.Join(err, printReport(cmd.OutOrStdout(), report, output))
				}
				if err == nil && report.Diverged > 0 {
					err = exit{fmt.Errorf("the sandbox differs from the record in %s", plural(report.Diverged, "place")), divergedCode}
				}
				return err
			})
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&to.Kubeconfig, "kubeconfig", "", "kubeconfig of the sandbox (required)")
	flags.StringVar(&to.Context, "context", "", "context of it, instead of the current one")
	flags.StringVar(&cluster, "cluster", "", "whose changes to repeat, where the session changed several clusters")
	flags.DurationVar(&timeout, "timeout", 30*time.Second, "bound of one request to the sandbox")
	flags.StringVarP(&output, "output", "o", "", "json for machines")
	_ = cmd.MarkFlagRequired("kubeconfig")
	return cmd
}

// replayed is the log as replay reads it.
func replayed(log audit.Log) replay.Log {
	return replay.Log{
		Records: func(f func([]byte) error) error {
			return log.Search(&audit.Query{}, 1, 0, false, func(_ uint64, record []byte) error { return f(record) })
		},
		Payload: func(seq uint64) ([]byte, error) {
			payload, err := log.Payload(seq)
			if errors.Is(err, gate.ErrNotFound) {
				return nil, nil
			}
			return payload, err
		},
	}
}

// sandboxName is what the sandbox is called here. It is on no record.
const sandboxName = "sandbox"

// sandbox sends requests with the credential of whoever runs the command.
type sandbox struct {
	clusters *kube.Clusters
	timeout  time.Duration
}

// UID implements replay.Sandbox.
func (s sandbox) UID(ctx context.Context) (string, error) {
	uid, err := s.clusters.UID(ctx, sandboxName)
	return uid, masked(err)
}

// Send implements replay.Sandbox.
func (s sandbox) Send(ctx context.Context, op string, a action.Action) (int, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, s.timeout)
	defer cancel()
	a.Cluster = sandboxName
	response, err := s.clusters.Execute(ctx, nil, a, op+"."+uuid.NewString()[:8], gate.Live{})
	return response.Code, response.Body, masked(err)
}

// masked is an error as it may be shown.
func masked(err error) error {
	var refused *gate.APIError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &refused):
		return &replay.Refusal{Code: refused.Code, Message: audit.MaskText(refused.Message)}
	}
	return errors.New(audit.MaskText(err.Error()))
}

func printReport(w io.Writer, r *replay.Report, output string) error {
	if output == "json" {
		e := json.NewEncoder(w)
		e.SetEscapeHTML(false)
		e.SetIndent("", "  ")
		return e.Encode(r)
	}
	out := bufio.NewWriter(w)
	line := func(format string, args ...any) {
		fmt.Fprintln(out, approvals.Visible(fmt.Sprintf(format, args...)))
	}
	details := func(why string, differences []replay.Difference) {
		if why != "" {
			line("          %s", why)
		}
		for _, d := range differences {
			line("          %s: on record %s, in the sandbox %s", d.Path, brief(d.Recorded), brief(d.Sandbox))
		}
	}
	if r.Shared {
		line("several callers gave this name to a session: what each of them changed is repeated")
	}
	for _, o := range r.Prepared {
		line("prepared  %s, %s", o.Object, o.Why)
	}
	replayed := 0
	for _, step := range r.Steps {
		what := cmp.Or(step.Action, step.Tool)
		if step.Result == replay.NotReplayed {
			line("left out  %s  %s: %s", step.Op, what, step.Why)
			continue
		}
		replayed++
		line("%-9s %s  %s: code %d, on record %d", step.Result, step.Op, what, step.Sandbox, step.Recorded)
		details(step.Why, step.Differences)
		if len(step.StandIns) > 0 {
			line("          stand-ins at %s", strings.Join(step.StandIns, ", "))
		}
	}
	for _, o := range r.Final {
		line("%-9s at the end: %s", o.Result, o.Object)
		details(o.Why, o.Differences)
	}
	line("%s replayed, %s put in, %d diverged", plural(replayed, "request"), plural(r.StandIns, "stand-in"), r.Diverged)
	return out.Flush()
}

// maxBrief bounds a value in a report for people; JSON has all of it.
const maxBrief = 200

func brief(v any) string {
	if v == nil {
		return "nothing"
	}
	text, err := action.Canonical(v)
	if err != nil {
		return err.Error()
	}
	if len(text) > maxBrief {
		return strings.ToValidUTF8(string(text[:maxBrief]), "") + "..."
	}
	return string(text)
}

func plural(n int, word string) string {
	if n == 1 {
		return "1 " + word
	}
	return fmt.Sprintf("%d %ss", n, word)
}
