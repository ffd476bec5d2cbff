package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"

	"countersign/action"
	"countersign/approvals"
	"countersign/configs"
	"countersign/kube"
	"countersign/policy"
	"countersign/strictyaml"
	"countersign/trial"
)

func policyCommand(s *settings) *cobra.Command {
	root := &cobra.Command{
		Use:   "policy",
		Short: "Check, test and explain policy, without a cluster",
		Long: `Check, test and explain policy, without a cluster and without a server. DIR is a
policy folder, by default that of the configuration. Where DIR is given and there
is no configuration, names of approver sets and clusters are not checked.`,
		RunE: subcommand,
	}
	root.AddCommand(policyCheckCommand(s), policyTestCommand(s), policyExplainCommand(s), policySimulateCommand(s))
	return root
}

// policyFolder is a policy folder with what it says, for a configuration if
// there is one.
type policyFolder struct {
	dir      string
	set      *policy.Set
	clusters []string // nil without a configuration
}

func (s *settings) policyFolder(cmd *cobra.Command, dir string) (policyFolder, error) {
	config, err := s.load()
	var known policy.Known
	switch {
	case err == nil:
		known = knownTo(config)
		dir = cmp.Or(dir, config.Policy)
	case dir != "" && errors.Is(err, fs.ErrNotExist) && !cmd.Flags().Changed("config"):
		fmt.Fprintf(cmd.ErrOrStderr(), "countersign: there is no configuration %s, so names of approver sets and clusters are not checked\n", s.config)
		known = knownTo(&configs.Config{})
		known.Approvers, known.Clusters = nil, nil
	default:
		return policyFolder{}, err
	}
	set, err := readPolicy(dir, known)
	return policyFolder{dir, set, known.Clusters}, err
}

// world is what decides the calls of a command.
func (p policyFolder) world() *trial.World {
	return trial.New(p.set, p.clusters, func(extra ...action.Resource) trial.Kinds { return kube.Builtin(extra...) })
}

func first(args []string) string {
	if len(args) == 0 {
		return ""
	}
	return args[0]
}

// outputFlag adds -o, and returns a check of its value.
func outputFlag(cmd *cobra.Command, output *string) func() error {
	cmd.Flags().StringVarP(output, "output", "o", "text", "text or json")
	return func() error {
		if *output != "text" && *output != "json" {
			return fmt.Errorf("-o %s: text or json", *output)
		}
		return nil
	}
}

func policyCheckCommand(s *settings) *cobra.Command {
	return &cobra.Command{
		Use:   "check [DIR]",
		Short: "Check a policy folder, reporting every mistake",
		Long: `Check a policy folder, reporting every mistake with its file and line, and then
what is no mistake but has no effect. Either makes the command fail.`,
		Example: "  countersign policy check\n  countersign policy check ./policy",
		Args:    cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			p, err := s.policyFolder(cmd, first(args))
			if err != nil {
				return err
			}
			if lines := warnings(p.dir, p.set); len(lines) > 0 {
				return errors.New(strings.Join(lines, "\n"))
			}
			info := p.set.Info()
			off := cmp.Or(strings.Join(info.GuardsOff, " "), "none")
			_, err = fmt.Fprintf(cmd.OutOrStdout(), "%s is good: rules: %d, limits: %d, guards off: %s, %s\n", p.dir, info.Rules, info.Limits, off, p.set.Digest())
			return err
		},
	}
}

// warnings are those of a set, one a line; they name files with their folder.
func warnings(folder string, set *policy.Set) []string {
	lines := make([]string, len(set.Warnings()))
	for i, w := range set.Warnings() {
		lines[i] = "warning: " + filepath.Clean(folder) + string(filepath.Separator) + w
	}
	return lines
}

// testResult is how one case went.
type testResult struct {
	File   string   `json:"file"`
	Line   int      `json:"line"`
	Case   string   `json:"case"`
	Pass   bool     `json:"pass"`
	Got    string   `json:"got"`
	Wanted string   `json:"wanted"`
	Rules  []string `json:"rules,omitempty"`
	Reason string   `json:"reason,omitempty"`
	// Problem says what is not as wanted.
	Problem string `json:"problem,omitempty"`
}

func policyTestCommand(s *settings) *cobra.Command {
	var output string
	test := &cobra.Command{
		Use:   "test [DIR]",
		Short: "Run the cases of the folder's *_test.yaml files",
		Long: `Run the cases of the folder's *_test.yaml files: each is a call, and what policy is
to say of it. What the API server would answer to a dry run is estimated from the
objects under live: defaults, admission and webhooks are left out, and result is
there for them.`,
		Example: "  countersign policy test\n  countersign policy test ./policy -o json",
		Args:    cobra.MaximumNArgs(1),
	}
	check := outputFlag(test, &output)
	test.RunE = func(cmd *cobra.Command, args []string) error {
		if err := check(); err != nil {
			return err
		}
		p, err := s.policyFolder(cmd, first(args))
		if err != nil {
			return err
		}
		cases, err := trial.Cases(os.DirFS(p.dir))
		if err != nil {
			return inFolder(p.dir, err)
		}
		if len(cases) == 0 {
			return fmt.Errorf("%s holds no case: write one into a file whose name ends in _test.yaml, with kind: PolicyTest", p.dir)
		}
		world := p.world()
		results := make([]testResult, len(cases))
		bad := 0
		for i, c := range cases {
			if ctx := cmd.Context(); ctx.Err() != nil {
				return context.Cause(ctx)
			}
			a, problem := world.Test(cmd.Context(), c)
			results[i] = testResult{
				File: filepath.Join(p.dir, c.File), Line: c.Line, Case: c.Name, Pass: problem == "",
				Got: a.Decision, Wanted: c.Want.Decision, Rules: a.Rules, Reason: a.Reason, Problem: problem,
			}
			if problem != "" {
				bad++
			}
		}
		if output == "json" {
			err = writeJSON(cmd.OutOrStdout(), results)
		} else {
			err = writeTests(cmd.OutOrStdout(), results)
		}
		if err == nil && bad > 0 {
			err = fmt.Errorf("%d of %d cases failed", bad, len(results))
		}
		return err
	}
	return test
}

func writeTests(w io.Writer, results []testResult) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	fmt.Fprintln(table, "\tCASE\tGOT\tWANTED\tRULES")
	for _, r := range results {
		verdict := "PASS"
		if !r.Pass {
			verdict = "FAIL"
		}
		fmt.Fprintf(table, "%s\t%s\t%s\t%s\t%s\n", verdict, approvals.Visible(r.Case), r.Got, r.Wanted, cmp.Or(strings.Join(r.Rules, " "), "-"))
	}
	if err := table.Flush(); err != nil {
		return err
	}
	for _, r := range results {
		if !r.Pass {
			fmt.Fprintf(w, "%s:%d: case %s: %s\n", r.File, r.Line, approvals.Visible(r.Case), approvals.Visible(r.Problem))
		}
	}
	return nil
}

// inFolder names the folder of files with mistakes.
func inFolder(dir string, err error) error {
	var problems strictyaml.Problems
	if errors.As(err, &problems) {
		return problems.In(dir)
	}
	return err
}

// explainFlags say which call to explain.
type explainFlags struct {
	file, name     string
	as, tool, args string
	groups         []string
	live           []string
	result         string
	labels         []string
	all            bool
}

func policyExplainCommand(s *settings) *cobra.Command {
	var output string
	var f explainFlags
	explain := &cobra.Command{
		Use:   "explain [DIR]",
		Short: "Show what every rule makes of one call, and what is decided",
		Long: `Show what every rule makes of one call, and what is decided. The call is a case of
a PolicyTest file, or given by flags.`,
		Example: `  countersign policy explain --file policy/shop_test.yaml --case 'small scale is allowed'
  countersign policy explain ./policy --as bot --group agents --tool delete_resource \
    --args '{"kind": "deploy", "name": "web", "namespace": "shop"}' --live web.yaml`,
		Args: cobra.MaximumNArgs(1),
	}
	check := outputFlag(explain, &output)
	flags := explain.Flags()
	flags.StringVar(&f.file, "file", "", "PolicyTest file that the case stands in")
	flags.StringVar(&f.name, "case", "", "name of the case")
	flags.StringVar(&f.as, "as", "", "user name of the caller, which is its subject too")
	flags.StringArrayVar(&f.groups, "group", nil, "group of the caller; can be repeated")
	flags.StringVar(&f.tool, "tool", "", "tool that is called")
	flags.StringVar(&f.args, "args", "{}", "arguments of the tool, as JSON")
	flags.StringArrayVar(&f.live, "live", nil, "file with objects that are there, YAML or JSON; can be repeated")
	flags.StringVar(&f.result, "result", "", "file with what the API server would answer to the dry runs, instead of an estimate")
	flags.StringArrayVar(&f.labels, "namespace-labels", nil, "labels of a namespace, NAMESPACE=KEY=VALUE,...; can be repeated")
	flags.BoolVar(&f.all, "all", false, "show built-in guards that do not apply as well")
	explain.MarkFlagsRequiredTogether("file", "case")
	explain.MarkFlagsRequiredTogether("as", "tool")
	explain.MarkFlagsOneRequired("file", "as")
	for _, flag := range []string{"as", "group", "tool", "args", "live", "result", "namespace-labels"} {
		explain.MarkFlagsMutuallyExclusive("file", flag)
	}
	explain.RunE = func(cmd *cobra.Command, args []string) error {
		if err := check(); err != nil {
			return err
		}
		p, err := s.policyFolder(cmd, first(args))
		if err != nil {
			return err
		}
		call, err := f.call()
		if err != nil {
			return err
		}
		e := p.world().Explain(cmd.Context(), call)
		if e.Decision == trial.Failed {
			return errors.New("the call cannot be decided: " + e.Reason)
		}
		if output == "json" {
			return writeJSON(cmd.OutOrStdout(), e)
		}
		return writeExplanation(cmd.OutOrStdout(), e, f.all)
	}
	return explain
}

// call is the call that the flags name or describe.
func (f explainFlags) call() (trial.Call, error) {
	if f.file != "" {
		data, err := readSmall(f.file)
		if err != nil {
			return trial.Call{}, err
		}
		cases, err := trial.Decode(f.file, data)
		if err != nil {
			return trial.Call{}, err
		}
		for _, c := range cases {
			if c.Name == f.name {
				return c.Call, nil
			}
		}
		names := make([]string, len(cases))
		for i, c := range cases {
			names[i] = fmt.Sprintf("%q", c.Name)
		}
		return trial.Call{}, fmt.Errorf("%s holds no case %q; it has %s", f.file, f.name, strings.Join(names, ", "))
	}
	call := trial.Call{
		Principal: action.Principal{Subject: f.as, Username: f.as, Groups: f.groups},
		Tool:      f.tool, Args: []byte(f.args), Namespaces: map[string]map[string]string{}, Now: time.Now(),
	}
	for _, file := range f.live {
		objects, err := readObjects(file)
		if err != nil {
			return call, err
		}
		call.Live = append(call.Live, objects...)
	}
	if f.result != "" {
		var err error
		if call.Results, err = readObjects(f.result); err != nil {
			return call, err
		}
	}
	for _, text := range f.labels {
		namespace, list, ok := strings.Cut(text, "=")
		labels := map[string]string{}
		for pair := range strings.SplitSeq(list, ",") {
			key, value, hasValue := strings.Cut(pair, "=")
			ok = ok && hasValue && key != ""
			labels[key] = value
		}
		if !ok {
			return call, fmt.Errorf("--namespace-labels %s: write NAMESPACE=KEY=VALUE, with more KEY=VALUE behind commas", text)
		}
		call.Namespaces[namespace] = labels
	}
	return call, nil
}

func readObjects(file string) ([]map[string]any, error) {
	data, err := readSmall(file)
	if err != nil {
		return nil, err
	}
	return trial.Objects(file, data)
}

// readSmall reads a file that a person wrote; one that is too large is read as
// far as shows it.
func readSmall(path string) ([]byte, error) {
	file, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	return io.ReadAll(io.LimitReader(file, strictyaml.MaxBytes+1))
}

func writeExplanation(w io.Writer, e trial.Explanation, all bool) error {
	table := tabwriter.NewWriter(w, 0, 0, 2, ' ', 0)
	for _, r := range e.Requests {
		fmt.Fprintf(table, "%s\n  RULE\tEFFECT\tAPPLIES\tWHY\n", approvals.Visible(r.Request))
		guards, hidden := 0, 0
		rules := slices.Clone(r.Rules)
		slices.SortStableFunc(rules, func(a, b policy.Explanation) int { return rank(a) - rank(b) })
		for _, rule := range rules {
			if rule.Guard {
				guards++
			}
			if rule.Guard && !rule.Applies && !rule.Unknown && !all {
				hidden++
				continue
			}
			applies := "no"
			switch {
			case rule.Applies:
				applies = "yes"
			case rule.Unknown:
				applies = "?"
			}
			why := approvals.Visible(rule.Why)
			if len(rule.Variables) > 0 {
				why += " (looks at " + strings.Join(rule.Variables, ", ") + ")"
			}
			if rule.Shadow {
				why += "; in mode shadow: not enforced"
			}
			fmt.Fprintf(table, "  %s\t%s\t%s\t%s\n", rule.Rule, rule.Effect, applies, why)
		}
		if err := table.Flush(); err != nil {
			return err
		}
		if hidden > 0 {
			fmt.Fprintf(w, "  %d of %d built-in guards do not apply; --all shows them\n", hidden, guards)
		}
		fmt.Fprintln(w)
	}
	line := func(name, text string) {
		if text != "" {
			fmt.Fprintf(table, "%s\t%s\n", name, approvals.Visible(text))
		}
	}
	line("Decision", e.Decision)
	line("Rules", strings.Join(e.Rules, ", "))
	line("Reason", e.Reason)
	line("Risks", strings.Join(e.Risks, ", "))
	for _, a := range e.Approvals {
		text := fmt.Sprintf("%s: %d of %s, within %s", a.Rule, a.Count, strings.Join(a.Approvers, " or "), a.Expires)
		if a.ReasonRequired {
			text += ", with a reason"
		}
		line("Approval", text)
	}
	for _, l := range e.Limits {
		text := fmt.Sprintf("%s: counts it, %d in %s by %s", l.Name, l.Calls, l.Per, l.By)
		if l.Shadow {
			text += "; in mode shadow: not enforced"
		}
		line("Limit", text)
	}
	if e.Shadow != nil {
		line("In shadow", fmt.Sprintf("%s, by %s", e.Shadow.Decision, cmp.Or(strings.Join(e.Shadow.Rules, ", "), "no rule")))
	}
	line("No preview", e.Unseen)
	return table.Flush()
}

// rank puts what somebody wrote before what is built in.
func rank(e policy.Explanation) int {
	if e.Guard {
		return 1
	}
	return 0
}

// simulation is what simulate writes as JSON.
type simulation struct {
	Calls  []trial.Verdict `json:"calls"`
	Totals trial.Totals    `json:"totals"`
}

func policySimulateCommand(s *settings) *cobra.Command {
	var output, log, dir string
	var changed bool
	simulate := &cobra.Command{
		Use:   "simulate --log EXPORT.jsonl --policy DIR",
		Short: "Decide the calls of an audit log again, by another policy",
		Long: `Decide the calls of an exported audit log again, by the policy of a folder, and say
where the decision would be another. The log holds who called, with which arguments,
for which requests and when. It holds neither the objects nor the labels of
namespaces: where the decision hangs on those, it cannot be told, or only how
strict it would be at least. Limits are not counted.`,
		Example: "  countersign audit export > audit.jsonl\n  countersign policy simulate --log audit.jsonl --policy ./policy --changed",
		Args:    cobra.NoArgs,
	}
	check := outputFlag(simulate, &output)
	simulate.Flags().StringVar(&log, "log", "", "exported audit log; - reads it from stdin")
	simulate.Flags().StringVar(&dir, "policy", "", "policy folder")
	simulate.Flags().BoolVar(&changed, "changed", false, "leave out calls whose decision would be the same")
	simulate.MarkFlagRequired("log")
	simulate.MarkFlagRequired("policy")
	simulate.RunE = func(cmd *cobra.Command, _ []string) error {
		if err := check(); err != nil {
			return err
		}
		p, err := s.policyFolder(cmd, dir)
		if err != nil {
			return err
		}
		in := cmd.InOrStdin()
		if log != "-" {
			file, err := os.Open(log)
			if err != nil {
				return err
			}
			defer file.Close()
			in = file
		}
		out := simulation{Calls: []trial.Verdict{}}
		out.Totals, err = p.world().Simulate(cmd.Context(), in, func(v trial.Verdict) error {
			switch {
			case changed && v.Same():
				return nil
			case output == "json":
				out.Calls = append(out.Calls, v)
				return nil
			}
			return writeVerdict(cmd.OutOrStdout(), v)
		})
		if err != nil {
			return fmt.Errorf("reading %s: %w", log, err)
		}
		if output == "json" {
			return writeJSON(cmd.OutOrStdout(), out)
		}
		_, err = fmt.Fprintf(cmd.OutOrStdout(), "same: %d, different: %d, cannot be told: %d\n", out.Totals.Same, out.Totals.Different, out.Totals.Unknown)
		return err
	}
	return simulate
}

func writeVerdict(w io.Writer, v trial.Verdict) error {
	decision := func(a trial.Answer) string {
		return fmt.Sprintf("%s (%s)", cmp.Or(a.Decision, "no decision"), cmp.Or(strings.Join(a.Rules, ", "), "no rule"))
	}
	verdict, after := "same", decision(v.After)
	switch {
	case v.Different():
		verdict = "DIFFERENT"
		if v.Least {
			after = "at least " + after
		}
	case v.Unknown != "":
		verdict, after = "?", "cannot be told: "+v.Unknown
		if v.Least {
			after = "at least " + decision(v.After) + "; more cannot be told: " + v.Unknown
		}
	}
	_, err := fmt.Fprintf(w, "%-9s  %s  %s  %s  %s: %s -> %s\n", verdict, v.Time.UTC().Format(time.RFC3339),
		approvals.Visible(v.Principal), approvals.Visible(v.Tool), approvals.Visible(v.What), approvals.Visible(decision(v.Before)), approvals.Visible(after))
	return err
}
