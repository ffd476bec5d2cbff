package trial_test

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strings"
	"testing"

	"countersign/trial"
)

// call is a recorded call: what stands in its intent, and the decision.
func call(op, tool, args, actions, decision, reason string, rules ...string) string {
	list, _ := json.Marshal(rules)
	if decision == "" {
		return intent(op, tool, args, actions)
	}
	return intent(op, tool, args, actions) + fmt.Sprintf(`{"v":1,"type":"policy.decided","op":%q,"time":"2026-01-05T12:00:01Z","policy":{"digest":"d","decision":%q,"reason":%q,"rules":%s}}`+"\n", op, decision, reason, list)
}

func intent(op, tool, args, actions string) string {
	return fmt.Sprintf(`{"v":1,"seq":1,"id":"x","time":"2026-01-05T12:00:00Z","type":"tool.intent","op":%q,"principal":{"issuer":"i","subject":"s","username":"bot","groups":["agents"]},"tool":{"name":%q,"args":%s},"actions":[%s]}`+"\n", op, tool, args, actions)
}

const (
	scaleAction  = `{"cluster":"local","verb":"patch","resource":"apps/v1/deployments","subresource":"scale","namespace":"shop","name":"web"}`
	applyAction  = `{"cluster":"local","verb":"patch","resource":"apps/v1/deployments","namespace":"shop","name":"web","patch":"apply"}`
	deleteAction = `{"cluster":"local","verb":"delete","resource":"apps/v1/deployments","namespace":"shop","name":"web"}`
)

func simulate(t *testing.T, spec, log string) ([]trial.Verdict, trial.Totals, error) {
	t.Helper()
	var all []trial.Verdict
	totals, err := world(t, nil, spec).Simulate(context.Background(), strings.NewReader(log), func(v trial.Verdict) error {
		all = append(all, v)
		return nil
	})
	return all, totals, err
}

const guardsOff = `
  guardsOff: ["guard:ownership", "guard:host-access", "guard:node-name", "guard:service-account-swap", "guard:secret-references"]`

// Attributes, arguments and time are known; what else a decision hangs on is not.
func TestSimulate(t *testing.T) {
	for _, row := range []struct{ name, rules, log, want string }{
		{"as before", "{name: a, effect: allow, match: {verbs: [get]}}",
			call("1", "get_resource", `{"kind":"deploy","namespace":"shop","name":"web"}`, `{"cluster":"local","verb":"get","resource":"apps/v1/deployments","namespace":"shop","name":"web"}`, "allow", "", "was"),
			"get deployments.apps shop/web: allow [was] -> allow [a]"},
		{"now denied", "{name: a, effect: allow, match: {verbs: [get], namespaces: [other]}}",
			call("1", "get_resource", `{"kind":"deploy","namespace":"shop","name":"web"}`, `{"cluster":"local","verb":"get","resource":"apps/v1/deployments","namespace":"shop","name":"web"}`, "allow", "", "was"),
			"get deployments.apps shop/web: allow [was] -> deny []"},
		{"by the arguments", "{name: a, effect: allow, match: {tools: [scale_deployment]}, when: args.replicas <= 10}",
			call("1", "scale_deployment", `{"namespace":"shop","name":"web","replicas":11}`, scaleAction, "allow", "", "was"),
			"patch deployments.apps/scale shop/web: allow [was] -> deny []"},
		{"by the time", "{name: a, effect: allow, match: {verbs: [patch]}, when: now.getHours() < 12}",
			call("1", "scale_deployment", `{"namespace":"shop","name":"web","replicas":11}`, scaleAction, "allow", "", "was"),
			"patch deployments.apps/scale shop/web: allow [was] -> deny []"},
		{"by the fields that the arguments tell", "{name: a, effect: allow, match: {verbs: [patch]}, when: \"fields == ['/spec/replicas']\"}",
			call("1", "scale_deployment", `{"namespace":"shop","name":"web","replicas":11}`, scaleAction, "allow", "", "was"),
			"patch deployments.apps/scale shop/web: allow [was] -> allow [a]"},
		{"hangs on the object", "{name: a, effect: allow, match: {verbs: [patch]}, when: object.spec.replicas < 3}",
			call("1", "scale_deployment", `{"namespace":"shop","name":"web","replicas":11}`, scaleAction, "allow", "", "was"),
			"patch deployments.apps/scale shop/web: allow [was] -> cannot be told: hangs on the object (rules a)"},
		{"hangs on labels", "{name: a, effect: allow, match: {verbs: [patch], namespaceSelector: {matchLabels: {a: b}}}}",
			call("1", "scale_deployment", `{"namespace":"shop","name":"web","replicas":11}`, scaleAction, "allow", "", "was"),
			"patch deployments.apps/scale shop/web: allow [was] -> cannot be told: hangs on the labels of the namespace (rules a)"},
		{"hangs on fields that the log has not", "{name: a, effect: allow, match: {verbs: [create, patch]}, when: \"!('/spec' in fields)\"}",
			call("1", "apply_manifest", `{"manifest":"(9 bytes, recorded as the payload)"}`, applyAction, "allow", "", "was"),
			"apply deployments.apps shop/web: allow [was] -> cannot be told: hangs on what would be sent (rules a)"},
		{"a denial hangs on nothing", "{name: a, effect: allow, match: {verbs: [patch]}, when: object.spec.replicas < 3}\n  - {name: b, effect: deny, match: {verbs: [patch]}}",
			call("1", "scale_deployment", `{"namespace":"shop","name":"web","replicas":11}`, scaleAction, "allow", "", "was"),
			"patch deployments.apps/scale shop/web: allow [was] -> deny [b]"},
		{"an apply is a creation too", "{name: a, effect: allow, match: {verbs: [patch]}}",
			call("1", "apply_manifest", `{"manifest":"(9 bytes, recorded as the payload)"}`, applyAction, "allow", "", "was"),
			"apply deployments.apps shop/web: allow [was] -> deny []"},
		{"in a log that does not say so", "{name: a, effect: allow, match: {verbs: [patch]}}",
			call("1", "apply_manifest", `{"manifest":"(9 bytes, recorded as the payload)"}`, strings.Replace(applyAction, `,"patch":"apply"`, "", 1), "allow", "", "was"),
			"apply deployments.apps shop/web: allow [was] -> deny []"},
		{"force", "{name: a, effect: allow, match: {verbs: [create, patch]}, when: action.force}",
			call("1", "apply_manifest", `{"manifest":"(9 bytes, recorded as the payload)","force":true}`, applyAction, "allow", "", "was"),
			"apply deployments.apps shop/web: allow [was] -> allow [a]"},
		{"how it is deleted", "{name: a, effect: allow, match: {verbs: [delete]}, when: action.propagationPolicy == 'Orphan' && action.gracePeriodSeconds == 0}",
			call("1", "delete_resource", `{"kind":"deploy","namespace":"shop","name":"web","propagation":"Orphan","grace_period_seconds":0}`, deleteAction, "allow", "", "was"),
			"delete deployments.apps shop/web: allow [was] -> allow [a]"},
		{"the strictest of several", "{name: a, effect: allow, match: {verbs: [create, patch], resources: [deployments.apps]}}\n  - {name: b, effect: require_approval, match: {resources: [widgets.example.com]}, approval: {approvers: [x]}}",
			call("1", "apply_manifest", `{"manifest":"(9 bytes, recorded as the payload)"}`, applyAction+`,{"cluster":"local","verb":"patch","resource":"example.com/v1/widgets","namespace":"shop","name":"w","patch":"apply"}`, "allow", "", "was"),
			"apply deployments.apps shop/web, apply widgets.example.com shop/w: allow [was] -> require_approval [b]"},
		{"refused before it was planned, and still", "{name: a, effect: allow, match: {verbs: [get]}}",
			call("1", "delete_resource", `{"kind":"deploy","namespace":"shop","name":"web"}`, "", "deny", "no policy rule allows it"),
			"delete deployments.apps shop/web: deny [] -> deny []"},
		{"refused before it was planned, and no longer", "{name: a, effect: allow, match: {verbs: [delete]}}",
			call("1", "delete_resource", `{"kind":"deploy","namespace":"shop","name":"web"}`, "", "deny", "no policy rule allows it"),
			"delete deployments.apps shop/web: deny [] -> allow [a]"},
		{"of which nobody knows what it was", "{name: a, effect: allow, match: {verbs: [create, patch]}}",
			call("1", "apply_manifest", `{"manifest":"(9 bytes, recorded as the payload)"}`, "", "deny", "no policy rule allows it"),
			": deny [] -> cannot be told: it was refused before its requests were known"},
		{"by a limit", "{name: a, effect: allow, match: {verbs: [delete]}}",
			call("1", "delete_resource", `{"kind":"deploy","namespace":"shop","name":"web"}`, deleteAction, "deny", "limit deletes: at most 1 requests in 1m", "deletes"),
			"delete deployments.apps shop/web: deny [deletes] -> cannot be told: it was refused by a limit, and limits are not counted here"},
		{"by a rule whose words begin so", "{name: a, effect: allow, match: {verbs: [delete]}}",
			call("1", "delete_resource", `{"kind":"deploy","namespace":"shop","name":"web"}`, deleteAction, "deny", "limit of what is sensible", "deletes"),
			"delete deployments.apps shop/web: deny [deletes] -> allow [a]"},
		{"after a rejection", "{name: a, effect: allow, match: {verbs: [delete]}}",
			call("1", "delete_resource", `{"kind":"deploy","namespace":"shop","name":"web"}`, deleteAction, "deny", "an approver rejected the same call 2s ago: no", "asked"),
			"delete deployments.apps shop/web: deny [asked] -> cannot be told: it was refused because a person had just rejected the same call"},
		{"a tool of another version", "{name: a, effect: allow, match: {verbs: [delete]}}",
			call("1", "brew_coffee", `{}`, deleteAction, "allow", "", "was"),
			`: allow [was] -> cannot be told: this version has no tool "brew_coffee"`},
		{"what comes later of the same call does not count", "{name: a, effect: allow, match: {verbs: [delete]}}",
			call("1", "delete_resource", `{"kind":"deploy","namespace":"shop","name":"web"}`, deleteAction, "allow", "", "was") +
				`{"v":1,"type":"policy.decided","op":"1","policy":{"decision":"deny"}}` + "\n" + `{"v":1,"type":"exec.outcome","op":"1"}` + "\n\n",
			"delete deployments.apps shop/web: allow [was] -> allow [a]"},
		{"nor what is asked about it", "{name: a, effect: allow, match: {verbs: [delete]}}",
			call("1", "delete_resource", `{"kind":"deploy","namespace":"shop","name":"web"}`, deleteAction, "", "") + intent("1", "get_operation", `{"op":"1"}`, "") +
				`{"v":1,"type":"policy.decided","op":"1","policy":{"decision":"deny"}}` + "\n" + intent("1", "get_operation", `{"op":"1"}`, ""),
			"delete deployments.apps shop/web: deny [] -> allow [a]"},
		{"without a decision of its own", "{name: a, effect: allow, match: {verbs: [delete]}}",
			call("1", "delete_resource", `{"kind":"deploy","namespace":"shop","name":"web"}`, deleteAction, "", "") + `{"v":1,"type":"policy.decided","op":"2","policy":{"decision":"deny"}}` + "\n",
			"delete deployments.apps shop/web:  [] -> cannot be told: nothing to compare with: the log has no decision on it"},
	} {
		t.Run(row.name, func(t *testing.T) {
			all, totals, err := simulate(t, guardsOff+"\n  rules:\n  - "+row.rules+"\n", row.log)
			if err != nil || len(all) != 1 || totals.Same+totals.Different+totals.Unknown != 1 {
				t.Fatalf("got %+v, %+v, %v", all, totals, err)
			}
			v := all[0]
			after := fmt.Sprintf("%s %v", v.After.Decision, v.After.Rules)
			if v.Unknown != "" {
				after = "cannot be told: " + v.Unknown
			}
			if got := fmt.Sprintf("%s: %s %v -> %s", v.What, v.Before.Decision, v.Before.Rules, after); got != row.want {
				t.Errorf("got  %s\nwant %s", got, row.want)
			}
			if v.Op != "1" || v.Principal != "bot" || v.Time.IsZero() || v.Same() != (totals.Same == 1) {
				t.Errorf("got %+v, %+v", v, totals)
			}
		})
	}
}

// What no log of ours is, is an error that says where and why.
func TestSimulateMistakes(t *testing.T) {
	const rules = "  rules:\n  - {name: a, effect: allow, match: {verbs: [get]}}\n"
	good := call("1", "list_namespaces", "{}", `{"cluster":"local","verb":"list","resource":"v1/namespaces"}`, "allow", "", "was")
	for _, row := range []struct{ name, log, want string }{
		{"empty", "", "the log holds no decision"},
		{"no decision", intent("1", "list_namespaces", "{}", ""), "the log holds no decision"},
		{"no calls", `{"v":1,"type":"policy.decided","op":"1","policy":{"decision":"deny"}}`, "none of the calls"},
		{"no JSON", good + "text", "line 3: is not a record"},
		{"cut off", good[:len(good)-20], "line 2: is not a record"},
		{"another version", `{"v":2,"type":"log.opened"}`, "line 1: is a record of version 2; 1 is understood"},
		{"no op", `{"v":1,"type":"tool.intent"}`, "line 1: a tool.intent record without an op"},
		{"no principal", `{"v":1,"type":"tool.intent","op":"1"}`, "line 1: a tool.intent record without a principal or a tool"},
		{"no policy", `{"v":1,"type":"policy.decided","op":"1"}`, "line 1: a policy.decided record without a decision"},
		{"too long", good + strings.Repeat(" ", 1<<20) + "\n", "line 3: is longer than 1048576 bytes"},
	} {
		if _, _, err := simulate(t, rules, row.log); err == nil || !strings.Contains(err.Error(), row.want) {
			t.Errorf("%s: got %v, want %s", row.name, err, row.want)
		}
	}
	// A resource that is none is said of the call, not of the log.
	all, _, err := simulate(t, rules, call("1", "list_namespaces", "{}", `{"cluster":"local","verb":"list","resource":"pods"}`, "allow", ""))
	if err != nil || len(all) != 1 || !strings.Contains(all[0].Unknown, `"list" of a resource "pods"`) {
		t.Errorf("got %+v, %v", all, err)
	}
}

// Whatever a log holds, it is decided or refused.
func FuzzSimulate(f *testing.F) {
	f.Add([]byte(call("1", "apply_manifest", `{"manifest":"(9 bytes)","force":true}`, applyAction, "allow", "", "was")))
	f.Add([]byte(call("1", "patch_resource", `{"kind":"deploy","namespace":"shop","name":"web","type":"json","patch":"[]"}`, scaleAction, "deny", "limit a: x", "a")))
	f.Add([]byte(call("1", "delete_resource", `{"kind":"ns","name":"shop"}`, "", "deny", "")))
	w := world(f, nil, "\n  rules:\n  - {name: all, effect: allow, match: {verbs: ['*']}, when: \"args.size() > 0 || fields.size() > 0 || object == null\"}\n")
	f.Fuzz(func(t *testing.T, log []byte) {
		n := 0
		totals, err := w.Simulate(context.Background(), strings.NewReader(string(log)), func(v trial.Verdict) error {
			if n++; v.Unknown == "" && v.After.Decision == "" {
				t.Errorf("not decided and not unknown: %+v", v)
			}
			return nil
		})
		if err == nil && n == 0 || n != totals.Same+totals.Different+totals.Unknown {
			t.Errorf("%d verdicts, %+v, %v", n, totals, err)
		}
	})
}

// A log without an end is read no further than the context goes.
func TestSimulateEnds(t *testing.T) {
	ctx, cancel := context.WithCancelCause(context.Background())
	one := call("1", "list_namespaces", "{}", `{"cluster":"local","verb":"list","resource":"v1/namespaces"}`, "allow", "", "was")
	n := 0
	_, err := world(t, nil, "  rules:\n  - {name: a, effect: allow}\n").Simulate(ctx, strings.NewReader(strings.Repeat(one, 100)), func(trial.Verdict) error {
		n++
		cancel(errors.New("a signal came"))
		return nil
	})
	if n != 1 || err == nil || err.Error() != "a signal came" {
		t.Errorf("got %d verdicts, %v", n, err)
	}
}
