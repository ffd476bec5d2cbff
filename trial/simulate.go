package trial

import (
	"bufio"
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"io"
	"reflect"
	"slices"
	"strings"
	"time"

	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/audit"
	"countersign/policy"
	"countersign/tools"
)

// Verdict is what another policy says of a recorded call.
type Verdict struct {
	Time      time.Time `json:"time"`
	Op        string    `json:"op"`
	Principal string    `json:"principal"`
	Tool      string    `json:"tool"`
	// What the call asks for, as a person would say it.
	What   string `json:"what"`
	Before Answer `json:"before"`
	After  Answer `json:"after"`
	// Unknown says why it cannot be told what the decision would be, or that it
	// cannot be compared; empty when it can.
	Unknown string `json:"unknown,omitempty"`
	// Least is set where Unknown is, if the decision would be After or a stricter one.
	Least bool `json:"atLeast,omitempty"`
}

// Different reports whether the decision would be another, whatever cannot be told.
func (v Verdict) Different() bool {
	order := []string{"", string(policy.Allow), string(policy.RequireApproval), string(policy.Deny)}
	if v.Unknown != "" {
		return v.Least && slices.Index(order, v.Before.Decision) < slices.Index(order, v.After.Decision)
	}
	return !v.Same()
}

// Same reports whether the decision would be what it was. The rules behind it
// may be others.
func (v Verdict) Same() bool { return v.Unknown == "" && v.Before.Decision == v.After.Decision }

// Totals count verdicts.
type Totals struct {
	Same      int `json:"same"`
	Different int `json:"different"`
	Unknown   int `json:"cannotBeTold"`
}

// maxLine bounds a line of a log, maxOpen the calls without a decision so far.
const (
	maxLine = 1 << 20
	maxOpen = 100_000
)

// Simulate reads an exported audit log and decides every call in it again. Each
// verdict is handed to each, in the order of the recorded decisions; calls that
// have none come last. It ends with the context.
//
// A log holds who called, with which arguments, which requests were planned and
// when. It does not hold what they would have sent, the objects, the differences
// or the labels of namespaces: where the decision hangs on those, it cannot be
// told. Limits are not counted, rules in mode shadow are not enforced, and
// action.kind is empty for kinds that are not Kubernetes' own.
func (w *World) Simulate(ctx context.Context, log io.Reader, each func(Verdict) error) (Totals, error) {
	var totals Totals
	give := func(v Verdict) error {
		switch {
		case v.Different():
			totals.Different++
		case v.Same():
			totals.Same++
		default:
			totals.Unknown++
		}
		return each(v)
	}
	open := map[string]Verdict{}
	var order []string // of the open ones
	decided := false
	lines := bufio.NewScanner(log)
	lines.Buffer(nil, maxLine)
	n := 0
	for lines.Scan() {
		n++
		if ctx.Err() != nil {
			return totals, context.Cause(ctx)
		}
		if len(bytes.TrimSpace(lines.Bytes())) == 0 {
			continue
		}
		r, err := readRecord(lines.Bytes())
		if err != nil {
			return totals, fmt.Errorf("line %d: %w", n, err)
		}
		switch r.Type {
		case audit.ToolIntent:
			if tool := w.find(r.Tool.Name); tool != nil && len(tool.Scopes) == 0 {
				continue // it is about an operation, bears that one's op, and policy is not asked
			}
			if len(open) >= maxOpen {
				return totals, fmt.Errorf("line %d: more than %d calls before it have no decision; this is no whole log", n, maxOpen)
			}
			open[r.Op] = w.again(ctx, r)
			order = append(order, r.Op)
		case audit.PolicyDecided:
			decided = true
			v, ok := open[r.Op]
			if !ok {
				continue // a later look at the same call, or one that was made before the log begins
			}
			delete(open, r.Op)
			if len(order) > 2*len(open)+64 {
				order = slices.DeleteFunc(order, func(op string) bool { _, ok := open[op]; return !ok })
			}
			v.Before = Answer{Decision: r.Policy.Decision, Rules: r.Policy.Rules, Reason: r.Policy.Reason}
			if why := notOfRules(v.Before); why != "" && v.Unknown == "" {
				v.Unknown, v.Least = why, false
			}
			if err := give(v); err != nil {
				return totals, err
			}
		}
	}
	switch err := lines.Err(); {
	case errors.Is(err, bufio.ErrTooLong):
		return totals, fmt.Errorf("line %d: is longer than %d bytes, which no record is", n+1, maxLine)
	case err != nil:
		return totals, err
	case !decided:
		return totals, errors.New("the log holds no decision: export a whole one with countersign audit export")
	}
	for _, op := range order {
		if v, ok := open[op]; ok {
			delete(open, op)
			v.Unknown = cmp.Or(v.Unknown, "nothing to compare with: the log has no decision on it")
			if err := give(v); err != nil {
				return totals, err
			}
		}
	}
	if totals == (Totals{}) {
		return totals, errors.New("the log holds decisions and none of the calls that they are about: export it from before them")
	}
	return totals, nil
}

// readRecord reads a line of the log, as far as Simulate uses it.
func readRecord(line []byte) (audit.Record, error) {
	var r audit.Record
	if err := kjson.UnmarshalCaseSensitivePreserveInts(line, &r); err != nil {
		return r, fmt.Errorf("is not a record: %w", err)
	}
	if r.V != audit.Version {
		return r, fmt.Errorf("is a record of version %d; %d is understood", r.V, audit.Version)
	}
	switch {
	case r.Type != audit.ToolIntent && r.Type != audit.PolicyDecided:
	case r.Op == "":
		return r, fmt.Errorf("a %s record without an op", r.Type)
	case r.Type == audit.PolicyDecided && r.Policy == nil:
		return r, errors.New("a policy.decided record without a decision")
	case r.Type == audit.ToolIntent && (r.Principal == nil || r.Tool == nil):
		return r, errors.New("a tool.intent record without a principal or a tool")
	}
	return r, nil
}

// notOfRules says that a recorded decision is not what the rules of its policy
// gave, so that there is nothing to compare: gate refused the call by a limit,
// or because a person had just rejected it.
func notOfRules(before Answer) string {
	switch {
	case before.Decision != string(policy.Deny):
	case len(before.Rules) == 1 && strings.HasPrefix(before.Reason, "limit "+before.Rules[0]+":"):
		return "it was refused by a limit, and limits are not counted here"
	case strings.HasPrefix(before.Reason, "an approver rejected the same call "):
		return "it was refused because a person had just rejected the same call"
	}
	return ""
}

// again decides a recorded call with what its record says.
func (w *World) again(ctx context.Context, r audit.Record) Verdict {
	v := Verdict{Time: r.Time, Op: r.Op, Principal: cmp.Or(r.Principal.Username, r.Principal.Subject), Tool: r.Tool.Name}
	tool := w.find(r.Tool.Name)
	if tool == nil {
		v.Unknown = fmt.Sprintf("this version has no tool %q", r.Tool.Name)
		return v
	}
	var actions []recordedAction
	for _, a := range r.Actions {
		made, err := w.recorded(ctx, tool, r.Tool.Args, a, len(r.Actions) == 1)
		if err != nil {
			v.Unknown = err.Error()
			return v
		}
		actions = append(actions, made)
	}
	if len(r.Actions) == 0 {
		actions = w.replanned(ctx, tool, r.Tool.Args)
	}
	v.What = describe(actions)
	if refusal, could := w.set.Could(r.Principal, tool.Name, tool.Scopes); !could {
		v.After = answered(refusal)
		return v
	}
	if len(actions) == 0 {
		v.Unknown = "it was refused before its requests were known"
		return v
	}
	decisions, leasts := make([]policy.Decision, len(actions)), make([]policy.Decision, len(actions))
	var hangs []string
	for i, a := range actions {
		var rules []string
		decisions[i], leasts[i], rules = w.set.DecideRecorded(policy.Request{
			Principal: r.Principal, Tool: tool.Name, Args: r.Tool.Args, Action: &a.Action, Now: r.Time,
		}, a.whole)
		for _, rule := range rules {
			if !slices.Contains(hangs, rule) {
				hangs = append(hangs, rule)
			}
		}
	}
	d := policy.Strictest(decisions)
	if d.Needs == 0 {
		v.After = answered(d)
		return v
	}
	var on []string
	for _, n := range []struct {
		need policy.Need
		text string
	}{{policy.NeedPreview, "the object"}, {policy.NeedBody, "what would be sent"}, {policy.NeedNamespace, "the labels of the namespace"}} {
		if d.Needs&n.need != 0 {
			on = append(on, n.text)
		}
	}
	v.Unknown = fmt.Sprintf("hangs on %s (rules %s)", strings.Join(on, " and "), strings.Join(hangs, ", "))
	if least := policy.Strictest(leasts); least.Effect != "" {
		v.After, v.Least = answered(least), true
	}
	return v
}

// recordedAction is an Action as far as a log tells of it.
type recordedAction struct {
	action.Action
	whole bool // its body is known, or it has none
}

// recorded makes an Action of its record. Where the arguments say it all, the
// tool plans again, so that its options and its body are known as well.
func (w *World) recorded(ctx context.Context, tool *tools.Tool, args map[string]any, a audit.Action, alone bool) (recordedAction, error) {
	resource, err := w.resource(ctx, a)
	if err != nil {
		return recordedAction{}, err
	}
	made := action.Action{Cluster: a.Cluster, Verb: a.Verb, Resource: resource, Subresource: a.Subresource, Namespace: a.Namespace, Name: a.Name}
	if alone {
		call, err := tool.Plan(ctx, tools.Offline(only{resource}, time.Time{}), args)
		if err == nil && len(call.Plan.Actions) == 1 {
			planned := call.Plan.Actions[0]
			planned.Cluster = a.Cluster
			bare := planned
			bare.Body, bare.Options = nil, action.Options{}
			if reflect.DeepEqual(bare, made) {
				return recordedAction{planned, true}, nil
			}
		}
	}
	if a.Verb == action.Patch {
		patch := a.Patch
		if given, ok := args["type"].(string); patch == "" && ok {
			patch = given
		} else if patch == "" && tool.Name == "apply_manifest" {
			patch = action.ApplyPatch.Short()
		}
		made.Options.PatchType = action.MergePatch
		for _, t := range []action.PatchType{action.StrategicMergePatch, action.JSONPatch, action.ApplyPatch} {
			if t.Short() == patch {
				made.Options.PatchType = t
			}
		}
		made.Options.Force = args["force"] == true
	}
	return recordedAction{made, made.ReadOnly() || a.Verb == action.Delete}, nil
}

// resource reads what a record calls a resource, "v1/pods" or
// "apps/v1/deployments". Of a kind that is not Kubernetes' own it is not known
// where it lives, but what is in a namespace does.
func (w *World) resource(ctx context.Context, a audit.Action) (action.Resource, error) {
	parts := strings.Split(a.Resource, "/")
	if len(parts) == 2 {
		parts = slices.Insert(parts, 0, "")
	}
	if len(parts) != 3 || a.Verb == "" {
		return action.Resource{}, fmt.Errorf("its record says %q of a resource %q, which is not understood", a.Verb, a.Resource)
	}
	r := action.Resource{Group: parts[0], Version: parts[1], Resource: parts[2], Namespaced: a.Namespace != ""}
	if known, err := w.kinds.Resolve(ctx, a.Cluster, "", r.GroupResource()); err == nil && known.GroupResource() == r.GroupResource() {
		r.Kind, r.Namespaced = known.Kind, known.Namespaced
	}
	return r, nil
}

// only resolves every name to the one resource that a record names.
type only struct{ resource action.Resource }

func (o only) Resolve(context.Context, string, string, string) (action.Resource, error) {
	return o.resource, nil
}

// replanned plans a call that was refused before it was planned; nil when its
// arguments, as the log has them, do not say enough.
func (w *World) replanned(ctx context.Context, tool *tools.Tool, args map[string]any) []recordedAction {
	call, err := tool.Plan(ctx, tools.Offline(w.kinds, time.Time{}), args)
	if err != nil {
		return nil
	}
	var out []recordedAction
	for _, a := range call.Plan.Actions {
		out = append(out, recordedAction{a, true})
	}
	return out
}

// describe names at most a few of the requests.
func describe(actions []recordedAction) string {
	const most = 3
	var all []string
	for i, a := range actions {
		if i == most {
			return strings.Join(all, ", ") + fmt.Sprintf(" and %d more", len(actions)-most)
		}
		all = append(all, a.String())
	}
	return strings.Join(all, ", ")
}
