package slack

import (
	"crypto/sha256"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode"

	slackgo "github.com/slack-go/slack"

	"countersign/action"
	"countersign/approvals"
	"countersign/approvals/slack/slacktest"
)

var update = flag.Bool("update", false, "write the golden files anew")

var (
	asked       = time.Date(2026, 3, 14, 12, 0, 0, 0, time.UTC)
	deployments = action.Resource{Group: "apps", Version: "v1", Resource: "deployments", Kind: "Deployment", Namespaced: true}
	fromMessage = meta{Channel: "C024BE91L"}
)

// rollout is a question as they come: another image and more replicas, one of
// two approvals there.
func rollout() approvals.Operation {
	return approvals.Operation{
		ID: "0198c0de-4f6a-7c31-9a55-1f0e6a1d2b3c", State: approvals.PendingApproval, Revision: 2,
		Principal:   action.Principal{Issuer: "https://idp.example.com", Subject: "s", Username: "release-agent", OnBehalfOf: "anna@example.com"},
		Tool:        "apply_manifest",
		AgentReason: "The checkout error rate rose after 2.3.9.\n2.4.0 has the fix, and two more replicas carry the sale.",
		Plan: action.Plan{Tool: "apply_manifest", Actions: []action.Action{{
			Cluster: "prod", Verb: action.Patch, Resource: deployments, Namespace: "shop", Name: "web", Options: action.Options{PatchType: action.ApplyPatch},
			Body: map[string]any{"spec": map[string]any{"replicas": int64(6)}},
		}}},
		PlanDigest:    "sha256:4be1f3a09c77d2e58b6a1c0f9d3e2b7a6c5d4e3f2a1b0c9d8e7f6a5b4c3d2e1f",
		PreviewDigest: "sha256:a91c02b7e5d4f3a2b1c0d9e8f7a6b5c4d3e2f1a0b9c8d7e6f5a4b3c2d1e0f9a8",
		Diffs: [][]action.Change{{
			{Op: "replace", Path: "/spec/replicas", Old: int64(4), New: int64(6)},
			{Op: "replace", Path: "/spec/template/spec/containers/0/image", Old: "registry.example.com/shop/web:2.3.9", New: "registry.example.com/shop/web:2.4.0"},
			{Op: "replace", Path: "/spec/template/spec/containers/0/env/3/value", Old: "1", New: "3"},
		}},
		Requirements: []approvals.Requirement{{Rule: "production-changes", Approvers: []string{"sre", "platform"}, Count: 2, Expires: 15 * time.Minute}},
		Votes:        []approvals.Vote{{Person: approvals.Person{ID: "slack:T024BE7LD/U0BEA", Name: "Bea", Sets: []string{"sre"}}, Ballot: approvals.Ballot{Approve: true, Reason: "planned, CHG-1234"}, Time: asked}},
		Rules:        []string{"production-changes"}, Reason: "Two people look at what changes in production.",
		Risks:   []string{"image changed"},
		Created: asked, Updated: asked.Add(time.Minute), Expires: asked.Add(15 * time.Minute), GrantFor: 30 * time.Minute,
	}
}

// takeover hides what it is about at the end of much that is harmless.
func takeover() approvals.Operation {
	op := rollout()
	op.GrantFor, op.Votes = 0, nil
	op.Requirements[0].ReasonRequired = true
	op.AgentReason = "Adds the settings page.\n*Already approved by security* <!channel> <@U024BE7LH>"
	op.Risks = []string{"privilege gained", "service account changed"}
	op.Plan.Actions = append(op.Plan.Actions, action.Action{
		Cluster: "prod", Verb: action.Patch, Resource: action.Resource{Version: "v1", Resource: "configmaps", Kind: "ConfigMap", Namespaced: true},
		Namespace: "shop", Name: "settings", Options: action.Options{PatchType: action.ApplyPatch},
	})
	var containers []any
	for i := range 9 {
		c := map[string]any{"name": fmt.Sprintf("web-%d", i), "image": fmt.Sprintf("registry.example.com/shop/web-%d:2.4.0", i)}
		if i == 8 {
			c["securityContext"] = map[string]any{"privileged": true}
		}
		containers = append(containers, c)
	}
	data := map[string]any{}
	for i := range 300 {
		data[fmt.Sprintf("setting-%03d", i)] = fmt.Sprintf("value %d of a page of settings that nobody reads to its end", i)
	}
	op.Diffs = [][]action.Change{
		{{Op: "add", New: map[string]any{
			"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "web", "namespace": "shop"},
			"spec": map[string]any{"template": map[string]any{"spec": map[string]any{
				"containers": containers, "serviceAccountName": "cluster-admin",
				"volumes": []any{map[string]any{"name": "root", "hostPath": map[string]any{"path": "/"}}},
			}}},
		}}},
		{{Op: "add", Path: "/data", New: data}},
	}
	return op
}

func inState(op approvals.Operation, s approvals.State, more func(*approvals.Operation)) approvals.Operation {
	op.State, op.Updated = s, asked.Add(4*time.Minute)
	if s != approvals.Rejected && len(op.Votes) > 0 {
		op.Votes = append(op.Votes[:1:1], approvals.Vote{Person: approvals.Person{ID: "slack:T024BE7LD/U0CARL", Name: "Carl", Sets: []string{"platform"}}, Ballot: approvals.Ballot{Approve: true}, Time: asked})
	}
	op.Reason = ""
	if more != nil {
		more(&op)
	}
	return op
}

// endings are the operation in every state that a message can show.
func endings() map[string]approvals.Operation {
	op := rollout()
	return map[string]approvals.Operation{
		"authorized": inState(op, approvals.Authorized, nil),
		"executing":  inState(op, approvals.Executing, nil),
		"succeeded":  inState(op, approvals.Succeeded, func(op *approvals.Operation) { op.Result = "deployments.apps shop/web: applied\nresourceVersion 4711" }),
		"failed": inState(op, approvals.Failed, func(op *approvals.Operation) {
			op.Reason = "the API server refused apply deployments.apps shop/web: quota exceeded"
		}),
		"partial": inState(op, approvals.Partial, func(op *approvals.Operation) { op.Done, op.Reason = 1, "admission webhook denied the request" }),
		"unknown": inState(op, approvals.Unknown, func(op *approvals.Operation) {
			op.Reason = "there was no answer to the request; it may or may not have taken effect"
		}),
		"reconciled": inState(op, approvals.Reconciled, func(op *approvals.Operation) {
			op.Evidence, op.Reason = "applied", "apply deployments.apps shop/web: the live object is as the request would make it"
		}),
		"rejected": inState(op, approvals.Rejected, func(op *approvals.Operation) {
			op.Reason = "wait until the sale is over"
			op.Votes = append(op.Votes[:1:1], approvals.Vote{Person: approvals.Person{ID: "slack:T024BE7LD/U0CARL", Name: "Carl", Sets: []string{"platform"}}, Ballot: approvals.Ballot{Reason: op.Reason}, Time: asked})
		}),
		"expired":   inState(op, approvals.Expired, nil),
		"cancelled": inState(op, approvals.Cancelled, nil),
		"denied":    inState(op, approvals.Denied, func(op *approvals.Operation) { op.Reason = "the freeze has begun" }),
		"stale":     inState(op, approvals.Stale, func(op *approvals.Operation) { op.SupersededBy = "0198c0de-4f6a-7c31-9a55-1f0e6a1d2b3d" }),
		"granted":   inState(op, approvals.Succeeded, func(op *approvals.Operation) { op.Grant, op.Votes = "0198c0de-0000-7000-8000-00000000000a", nil }),
	}
}

// posted is what Slack gets of a message.
type posted struct {
	Text   string          `json:"text"`
	Blocks []slackgo.Block `json:"blocks"`
}

func golden(t *testing.T, name string, v any) {
	t.Helper()
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	enc.SetIndent("", "  ")
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join("testdata", name+".json")
	if *update {
		if err := os.MkdirAll("testdata", 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(b.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (go test ./approvals/slack -update writes it)", err)
	}
	if b.String() != string(want) {
		t.Errorf("%s is\n%s\nnow it would be\n%s", path, want, b.String())
	}
}

func TestGolden(t *testing.T) {
	put := func(name string, text string, blocks []slackgo.Block) {
		t.Helper()
		t.Run(name, func(t *testing.T) {
			limits(t, blocks)
			golden(t, name, posted{text, blocks})
		})
	}
	text, blocks := question(rollout())
	put("question", text, blocks)
	text, blocks = question(takeover())
	put("question_too_long", text, blocks)
	for name, op := range endings() {
		text, blocks := question(op)
		put("question_"+name, text, blocks)
	}
	for _, name := range []string{"succeeded", "failed", "reconciled", "rejected"} {
		text, blocks := outcome(endings()[name])
		put("outcome_"+name, text, blocks)
	}
	text, blocks = reminder(rollout(), []string{"S024BE91L"}, []string{"U024BE7LH", "!channel", "U1> <!here"})
	put("reminder", text, blocks)
	text, blocks = direct(rollout())
	put("direct", text, blocks)

	again := rollout()
	again.Supersedes = "0198c0de-4f6a-7c31-9a55-1f0e6a1d2b3b"
	again.Drift = []string{"apply deployments.apps shop/web /spec/replicas: was 4 -> 5, now 4 -> 6"}
	text, blocks = question(again)
	put("question_again", text, blocks)

	last := pages(takeover()) - 1
	for name, view := range map[string]slackgo.ModalViewRequest{
		"review_first":  review(takeover(), 0, fromMessage),
		"review_last":   review(takeover(), last, fromMessage),
		"review_one":    review(rollout(), 0, fromMessage),
		"review_closed": review(endings()["rejected"], 0, fromMessage),
		"ask_reject":    ask(rollout(), false, false, fromMessage),
		"ask_approve":   ask(takeover(), true, false, fromMessage),
		"ask_kind":      ask(rollout(), true, true, fromMessage),
		"ask_closed":    ask(endings()["expired"], false, false, fromMessage),
	} {
		t.Run(name, func(t *testing.T) {
			modalLimits(t, view)
			golden(t, name, view)
		})
	}
}

// limits checks what Slack says of blocks, and our budget of a message.
func limits(t *testing.T, blocks []slackgo.Block) {
	t.Helper()
	blockLimits(t, blocks, 50)
	if n := spent(blocks); n > messageRoom {
		t.Errorf("%d characters in a message", n)
	}
}

func modalLimits(t *testing.T, view slackgo.ModalViewRequest) {
	t.Helper()
	blockLimits(t, view.Blocks.BlockSet, 100)
	if n := spent(view.Blocks.BlockSet); n > 12000 {
		t.Errorf("%d characters in a modal", n)
	}
	for name, text := range map[string]*slackgo.TextBlockObject{"title": view.Title, "submit": view.Submit, "close": view.Close} {
		if text != nil && (text.Type != "plain_text" || text.Text == "" || size(text.Text) > 24) {
			t.Errorf("%s is %+v", name, text)
		}
	}
	if len(view.PrivateMetadata) > 3000 {
		t.Errorf("private_metadata of %d characters", len(view.PrivateMetadata))
	}
	hasInput := false
	for _, b := range view.Blocks.BlockSet {
		hasInput = hasInput || b.BlockType() == slackgo.MBTInput
	}
	if hasInput != (view.Submit != nil) {
		t.Errorf("an input %v, a submit button %v", hasInput, view.Submit)
	}
}

// blockLimits walks the JSON that Slack gets.
func blockLimits(t *testing.T, blocks []slackgo.Block, most int) {
	t.Helper()
	data, err := json.Marshal(blocks)
	if err != nil {
		t.Fatal(err)
	}
	if len(blocks) == 0 || len(blocks) > most {
		t.Errorf("%d blocks", len(blocks))
	}
	var all []any
	if err := json.Unmarshal(data, &all); err != nil {
		t.Fatal(err)
	}
	at := func(v any, keys ...string) any {
		for _, key := range keys {
			m, _ := v.(map[string]any)
			v = m[key]
		}
		return v
	}
	var walk func(where string, v any)
	walk = func(where string, v any) {
		switch v := v.(type) {
		case nil:
			t.Errorf("%s is null", where)
		case []any:
			for i, item := range v {
				walk(fmt.Sprintf("%s/%d", where, i), item)
			}
			if len(v) == 0 {
				t.Errorf("%s is empty", where)
			}
		case map[string]any:
			kind, _ := v["type"].(string)
			room := map[string]int{"plain_text": 3000, "text": 3000, "mrkdwn": -1, "broadcast": -1, "link": -1, "channel": -1}[kind]
			if room < 0 {
				t.Errorf("%s is a %s", where, kind)
			}
			text, isText := v["text"].(string)
			if isText && (text == "" || size(text) > room) {
				t.Errorf("%s is a %s of %d characters", where, kind, size(text))
			}
			if i := strings.IndexFunc(text, func(r rune) bool { return r != '\n' && !unicode.IsPrint(r) }); i >= 0 {
				t.Errorf("%s has %q", where, text[i:])
			}
			switch kind {
			case "header":
				if text, _ := at(v, "text", "text").(string); size(text) > 150 || strings.Contains(text, "\n") {
					t.Errorf("%s is a header %q", where, text)
				}
			case "button":
				text, _ := at(v, "text", "text").(string)
				value, _ := v["value"].(string)
				if size(text) > 75 || !opForm.MatchString(value) {
					t.Errorf("%s is a button %q with %q", where, text, value)
				}
			case "input":
				label, _ := at(v, "label", "text").(string)
				hint, _ := at(v, "hint", "text").(string)
				if size(label) > 2000 || size(hint) > 2000 {
					t.Errorf("%s is an input of %q, %q", where, label, hint)
				}
			case "context":
				if n := len(v["elements"].([]any)); n > 10 {
					t.Errorf("%s has %d elements", where, n)
				}
			}
			for key, value := range v {
				walk(where+"/"+key, value)
			}
		}
	}
	walk("", all)
}

func buttonsOf(blocks []slackgo.Block) []string {
	var ids []string
	for _, b := range blocks {
		if b, ok := b.(*slackgo.ActionBlock); ok {
			for _, e := range b.Elements.ElementSet {
				ids = append(ids, e.(*slackgo.ButtonBlockElement).ActionID)
			}
		}
	}
	return ids
}

func jsonOf(t *testing.T, v any) string {
	t.Helper()
	var b strings.Builder
	enc := json.NewEncoder(&b)
	enc.SetEscapeHTML(false)
	if err := enc.Encode(v); err != nil {
		t.Fatal(err)
	}
	return b.String()
}

// What a message offers: nothing is approved from it that it does not show.
func TestButtons(t *testing.T) {
	noGrant := rollout()
	noGrant.GrantFor = 0
	// A message can be full of other things, too.
	crowded := rollout()
	crowded.Diffs[0] = crowded.Diffs[0][:1:1]
	for i := range 25 {
		crowded.Diffs[0] = append(crowded.Diffs[0], action.Change{Op: "replace", Path: fmt.Sprintf("/spec/a-field-with-quite-a-name-%d", i), Old: "a", New: "b"})
	}
	for _, row := range []struct {
		name string
		op   approvals.Operation
		want string
	}{
		{"it fits", rollout(), "[approve review approve_kind reject]"},
		{"no grants", noGrant, "[approve review reject]"},
		{"too long", takeover(), "[review reject]"},
		{"a kind too long to tell", crowded, "[approve review reject]"},
		{"closed", endings()["rejected"], "[]"},
		{"running", endings()["executing"], "[]"},
	} {
		_, blocks := question(row.op)
		if got := fmt.Sprint(buttonsOf(blocks)); got != row.want {
			t.Errorf("%s: %s; want %s", row.name, got, row.want)
		}
		if got := fmt.Sprint(whole(row.op), offersKind(row.op)); row.op.State == approvals.PendingApproval && got != fmt.Sprint(strings.Contains(row.want, "approve "), strings.Contains(row.want, "approve_kind")) {
			t.Errorf("%s: %s; want as %s", row.name, got, row.want)
		}
	}
}

// Whatever the danger hides behind, the message shows it.
func TestDangerIsShown(t *testing.T) {
	text, blocks := question(takeover())
	all := jsonOf(t, blocks)
	for _, want := range []string{`containers/8/securityContext/privileged: true`, `hostPath: {path: \"/\"}`, `serviceAccountName: \"cluster-admin\"`, "privilege gained"} {
		if !strings.Contains(all, want) {
			t.Errorf("%s is not in %s", want, all)
		}
	}
	if strings.ContainsAny(text, "<>") {
		t.Errorf("fallback %q", text)
	}
	for _, b := range blocks {
		if list := jsonOf(t, b); strings.Contains(list, "rich_text_list") && strings.Index(list, "privileged: true") > 3000 {
			t.Error("it stands far down")
		}
	}
}

// The pages together are the text that the local approver reads, and nothing
// that is broken can pass for a line of its own.
func TestReviewIsTheWholeText(t *testing.T) {
	for name, op := range map[string]approvals.Operation{"short": rollout(), "long": takeover(), "closed": endings()["failed"], "hostile": hostile()} {
		var all []string
		sheets := paged(op)
		for i := range sheets {
			view := review(op, i, fromMessage)
			modalLimits(t, view)
			shown := sheets[i]
			all = append(all, shown.blocks...)
			for _, text := range shown.blocks {
				if !slices.ContainsFunc(view.Blocks.BlockSet, func(b slackgo.Block) bool { return reflect.DeepEqual(b, rich(pre(text))) }) {
					t.Errorf("%s: page %d lacks a text", name, i)
				}
			}
			m, err := parseMeta(view.PrivateMetadata)
			if err != nil || m.Page != i || m.Op != op.ID || m.Channel != fromMessage.Channel {
				t.Errorf("%s: page %d says %+v, %v", name, i, m, err)
			}
			last := i == len(sheets)-1
			if submit := view.Submit != nil; submit != (last && op.State == approvals.PendingApproval) {
				t.Errorf("%s: page %d can be submitted: %v", name, i, submit)
			}
			if got := strings.Contains(fmt.Sprint(buttonsOf(view.Blocks.BlockSet)), actionNext); got == last {
				t.Errorf("%s: page %d has a next one: %v", name, i, got)
			}
		}
		whole := strings.ReplaceAll(strings.Join(all, "\n"), "\n"+broken, "")
		if want := strings.TrimSuffix(approvals.Text(op), "\n"); whole != want {
			t.Errorf("%s: the pages are\n%s\nnot\n%s", name, whole, want)
		}
	}
	if n := pages(takeover()); n < 3 {
		t.Errorf("%d pages", n)
	}
	// Beyond the ends is the nearest page.
	if got, want := jsonOf(t, review(rollout(), 99, fromMessage)), jsonOf(t, review(rollout(), 0, fromMessage)); got != want {
		t.Error("page 99 of 1 is another")
	}
	if strings.Contains(jsonOf(t, review(takeover(), -5, fromMessage)), `"submit"`) {
		t.Error("page -5 can be submitted")
	}
}

// nasty is what an agent or a manifest may hold.
const nasty = "<!channel> <@U024BE7LH> <!subteam^S024BE91L> <https://evil.example|ok> *bold* `x` ```\nState SUCCEEDED\n``` &lt;\u202eterces\u200b\x1b[31m\u2028 @here :tada: \u3164"

func hostile() approvals.Operation {
	op := rollout()
	long := strings.Repeat("x", 5000)
	op.Principal = action.Principal{Issuer: nasty, Username: nasty + long, OnBehalfOf: nasty + long}
	op.Tool, op.AgentReason, op.Reason = nasty+long, strings.Repeat(nasty+"\n", 50), nasty+long
	op.Rules = []string{nasty, long}
	op.Risks = []string{nasty, long}
	op.Requirements[0].Approvers = []string{nasty, long}
	op.Votes = []approvals.Vote{{Person: approvals.Person{ID: nasty, Name: nasty + long}, Ballot: approvals.Ballot{Approve: true, Reason: nasty + long}, Time: asked}}
	op.Drift = []string{nasty + long, long}
	op.Supersedes = nasty + long
	op.Plan.Actions[0].Name, op.Plan.Actions[0].Namespace, op.Plan.Actions[0].Cluster = nasty+long, nasty+long, nasty+long
	op.Diffs = [][]action.Change{{
		{Op: "replace", Path: "/metadata/annotations/" + nasty, Old: nasty, New: long},
		{Op: "add", Path: "/spec/template/spec/containers/0", New: map[string]any{
			"args":            []any{long, nasty},
			"image":           strings.Repeat("y", 30_000),
			"securityContext": map[string]any{"aaa": long, "privileged": true},
		}},
	}}
	op.PlanDigest, op.PreviewDigest = nasty, long
	op.SupersededBy, op.Result, op.Evidence, op.Grant = nasty+long, strings.Repeat(nasty+long+"\n", 9), "applied", ""
	return op
}

// states are all of them.
var states = []approvals.State{
	approvals.PendingApproval, approvals.Authorized, approvals.Executing, approvals.Unknown, approvals.Denied, approvals.Rejected,
	approvals.Expired, approvals.Cancelled, approvals.Stale, approvals.Succeeded, approvals.Failed, approvals.Partial, approvals.Reconciled, nasty,
}

// everything renders an operation in every way, and checks what Slack would.
func everything(t *testing.T, op approvals.Operation, states ...approvals.State) {
	t.Helper()
	say := func(text string, blocks []slackgo.Block) {
		t.Helper()
		limits(t, blocks)
		if strings.ContainsAny(text, "<>\n\u202e\u200b\x1b") || text == "" || size(text) > 4000 {
			t.Errorf("fallback %q", text)
		}
	}
	for _, s := range states {
		op.State = s
		say(question(op))
		say(outcome(op))
		if s == approvals.PendingApproval || s == approvals.Stale {
			say(direct(op))
			say(reminder(op, []string{nasty}, nil))
			n := pages(op)
			for _, i := range []int{0, n / 2, n - 1} {
				modalLimits(t, review(op, i, fromMessage))
			}
			for _, view := range []slackgo.ModalViewRequest{ask(op, true, false, fromMessage), ask(op, true, true, fromMessage), ask(op, false, false, fromMessage)} {
				modalLimits(t, view)
			}
		}
		if t.Failed() {
			t.Fatalf("in state %s", s)
		}
	}
}

func TestAttacks(t *testing.T) {
	big := takeover()
	big.Diffs[1][0].New.(map[string]any)["zz"] = strings.Repeat("0123456789abcdef", 12_800) // 200 KiB
	many := rollout()
	for i := range 500 {
		a := many.Plan.Actions[0]
		a.Name, a.Namespace, a.Cluster = fmt.Sprint("web-", i), fmt.Sprint("ns-", i), fmt.Sprint("cluster-", i)
		many.Plan.Actions, many.Diffs = append(many.Plan.Actions, a), append(many.Diffs, many.Diffs[0])
	}
	voted := hostile()
	for range 100 {
		voted.Votes, voted.Requirements = append(voted.Votes, voted.Votes[0]), append(voted.Requirements, voted.Requirements[0])
		voted.Rules, voted.Risks, voted.Drift = append(voted.Rules, voted.Rules[0]), append(voted.Risks, voted.Risks[0]), append(voted.Drift, voted.Drift[0])
	}
	empty := rollout()
	empty.Diffs = [][]action.Change{nil}
	emoji := hostile()
	emoji.AgentReason, emoji.Diffs = strings.Repeat("😀", 3000), [][]action.Change{{{Op: "add", Path: "/data/x", New: strings.Repeat("😀", 30_000)}}}
	control := rollout()
	control.AgentReason, control.Reason, control.Principal.Username = strings.Repeat("\U000e0041", 3000), strings.Repeat("\U000e0041", 3000), strings.Repeat("\U000e0041", 3000)
	for name, op := range map[string]approvals.Operation{
		"usual": rollout(), "hidden": takeover(), "hostile": hostile(), "200 KiB": big, "500 requests": many, "100 votes": voted,
		"no difference": empty, "nothing at all": {ID: "0198c0de"}, "only line breaks": {ID: "0198c0de", AgentReason: "\n\n", Reason: "\n", Result: "\n"},
		"astral": emoji, "invisible": control,
	} {
		t.Run(name, func(t *testing.T) { everything(t, op, states...) })
	}

	// What stands behind a long value is not pushed out by it.
	all := jsonOf(t, func() any { _, b := question(hostile()); return b }())
	if !strings.Contains(all, "/0/securityContext/privileged: true") {
		t.Errorf("privileged is hidden in %s", all)
	}
	if !strings.Contains(all, "(5000 characters)") && !strings.Contains(all, "characters)") {
		t.Error("what was cut is not said")
	}
}

// Random operations keep within Slack's limits as well.
func TestRandom(t *testing.T) {
	for seed := range uint64(15) {
		r := rand.New(rand.NewPCG(seed, 7))
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			everything(t, random(r), approvals.PendingApproval, states[r.IntN(len(states))])
		})
	}
}

func random(r *rand.Rand) approvals.Operation {
	alphabet := []rune("ab <>&*_`@!:|\n\t\r\u202e\u200b\x1b\u3164😀日{}[]\"\\/~")
	text := func() string {
		n := r.IntN(20)
		if r.IntN(10) == 0 {
			n = r.IntN(4000)
		}
		out := make([]rune, n)
		for i := range out {
			out[i] = alphabet[r.IntN(len(alphabet))]
		}
		return string(out)
	}
	list := func() []string {
		out := make([]string, r.IntN(4)*r.IntN(8))
		for i := range out {
			out[i] = text()
		}
		return out
	}
	keys := []string{"spec", "containers", "privileged", "image", "rules", "verbs", "volumes", "hostPath", "replicas", "securityContext", "args", "webhooks", "capabilities", "add"}
	var value func(depth int) any
	value = func(depth int) any {
		switch n := r.IntN(8); {
		case depth > 4 || n < 3:
			return []any{text(), true, false, int64(0), 1.5, nil}[r.IntN(6)]
		case n < 5:
			var out []any
			for range r.IntN(5) {
				out = append(out, value(depth+1))
			}
			return out
		}
		out := map[string]any{}
		for range r.IntN(6) {
			out[append(keys, text())[r.IntN(len(keys)+1)]] = value(depth + 1)
		}
		return out
	}
	op := approvals.Operation{
		ID: "0198c0de", Principal: action.Principal{Issuer: text(), Username: text(), OnBehalfOf: text()},
		Tool: text(), AgentReason: text(), PlanDigest: text(), PreviewDigest: text(), Rules: list(), Risks: list(), Reason: text(),
		Expires: asked, Created: asked, Updated: asked.Add(time.Duration(r.IntN(1e6)) * time.Second), Supersedes: text(), SupersededBy: text(), Drift: list(),
		GrantFor: time.Duration(r.IntN(3)) * 37 * time.Minute, Result: text(), Evidence: text(), Done: r.IntN(3),
	}
	for range r.IntN(5) {
		op.Plan.Actions = append(op.Plan.Actions, action.Action{Cluster: text(), Verb: action.Patch, Resource: deployments, Namespace: text(), Name: text()})
		var diff []action.Change
		for range r.IntN(12) {
			diff = append(diff, action.Change{
				Op: []string{"add", "remove", "replace"}[r.IntN(3)], Path: []string{"", "/spec/" + keys[r.IntN(len(keys))], "/" + text()}[r.IntN(3)], Old: value(0), New: value(0),
			})
		}
		op.Diffs = append(op.Diffs, diff)
	}
	for range r.IntN(8) {
		op.Requirements = append(op.Requirements, approvals.Requirement{Approvers: list(), Count: r.IntN(4), ReasonRequired: r.IntN(2) == 0})
		op.Votes = append(op.Votes, approvals.Vote{Person: approvals.Person{ID: text(), Name: text()}, Ballot: approvals.Ballot{Approve: r.IntN(2) == 0, Reason: text(), Grant: r.IntN(2) == 0}})
	}
	return op
}

// The double of Slack takes all of it.
func TestSlackTakesIt(t *testing.T) {
	s, err := slacktest.Start("127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	s.AddUser(slacktest.User{ID: "U024BE7LH"})
	s.AddChannel(slacktest.Channel{ID: "C024BE91L"})
	triggers := make(chan string, 1)
	app := httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		var cb slackgo.InteractionCallback
		_ = json.Unmarshal([]byte(r.FormValue("payload")), &cb)
		triggers <- cb.TriggerID
	}))
	defer app.Close()
	s.SetInteractions(app.URL)
	client := slackgo.New(s.BotToken, slackgo.OptionAPIURL(s.URL))
	post := func(text string, blocks []slackgo.Block) string {
		t.Helper()
		_, ts, err := client.PostMessage("C024BE91L", slackgo.MsgOptionText(text, false), slackgo.MsgOptionBlocks(blocks...))
		if err != nil {
			t.Fatal(err)
		}
		return ts
	}
	ts := post(question(rollout()))
	if _, err := s.Click("U024BE7LH", "C024BE91L", ts, actionReview); err != nil {
		t.Fatal(err)
	}
	view, err := client.OpenView(<-triggers, review(rollout(), 0, fromMessage))
	if err != nil {
		t.Fatal(err)
	}

	ops := []approvals.Operation{rollout(), takeover(), hostile(), {ID: "0198c0de"}}
	for seed := range uint64(3) {
		ops = append(ops, random(rand.New(rand.NewPCG(seed, 8))))
	}
	for _, op := range ops {
		for _, op.State = range []approvals.State{approvals.PendingApproval, approvals.Executing, approvals.Succeeded} {
			post(question(op))
			post(outcome(op))
			post(reminder(op, []string{"S024BE91L"}, []string{"U024BE7LH"}))
			post(direct(op))
			for _, modal := range []slackgo.ModalViewRequest{
				review(op, 0, fromMessage), review(op, pages(op)-1, fromMessage),
				ask(op, true, false, fromMessage), ask(op, true, true, fromMessage), ask(op, false, false, fromMessage),
			} {
				if _, err := client.UpdateView(modal, "", "", view.ID); err != nil {
					t.Errorf("%s: %v", modal.CallbackID, err)
				}
			}
		}
	}
}

// The pictures in the documentation show what is sent now.
func TestPictures(t *testing.T) {
	folder := filepath.Join("..", "..", "docs", "slack")
	list, err := os.ReadFile(filepath.Join(folder, "pictures.sum"))
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(list)) {
		fields := strings.Fields(line)
		if len(fields) != 3 {
			t.Fatalf("pictures.sum has %q", line)
		}
		shown, err := os.ReadFile(filepath.Join("testdata", fields[1]))
		if err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprintf("%x", sha256.Sum256(shown)); got != fields[0] {
			t.Errorf("%s does not show %s as it is now: run docs/slack/pictures.sh and look at it", fields[2], fields[1])
		}
		if picture, err := os.Stat(filepath.Join(folder, fields[2])); err != nil || picture.Size() > 150<<10 {
			t.Errorf("%s: %v, %v", fields[2], picture, err)
		}
	}
}

// A line that is broken is whole without its breaks, and none begins like another.
func TestWrap(t *testing.T) {
	for _, row := range []struct{ in, want string }{
		{"", ""},
		{"short", "short"},
		{"exactly-twenty-here-and-more", "exactly-twenty-here-|      ↳ and-more"},
		{"a word more than twenty characters", "a word more than |      ↳ twenty chara|      ↳ cters"},
		{"one\n\ntwo\n", "one||two"},
		{"/spec/template/paths/more", "/spec/template/|      ↳ paths/more"},
	} {
		got := strings.Join(wrap(row.in, 20), "|")
		if got != row.want {
			t.Errorf("%q: %q; want %q", row.in, got, row.want)
		}
	}
}

// Only ids that Slack makes become mentions, and only in a reminder.
func TestMentions(t *testing.T) {
	mention := regexp.MustCompile(`"(user|usergroup|broadcast|channel|link)"`)
	op := hostile()
	for _, view := range []any{posted{}, review(op, 0, fromMessage), ask(op, false, false, fromMessage)} {
		if got := mention.FindString(jsonOf(t, view)); got != "" {
			t.Errorf("a mention %s", got)
		}
	}
	_, blocks := question(op)
	if got := mention.FindString(jsonOf(t, blocks)); got != "" {
		t.Errorf("a mention %s", got)
	}
	_, blocks = reminder(op, []string{"S024BE91L", "!here", ""}, []string{"U024BE7LH", "U1 x", "C024BE91L"})
	all := jsonOf(t, blocks)
	if got := mention.FindAllString(all, -1); len(got) != 2 || !strings.Contains(all, `"usergroup_id":"S024BE91L"`) || !strings.Contains(all, `"user_id":"U024BE7LH"`) {
		t.Errorf("mentions %v in %s", got, all)
	}
	var users []string
	for i := range 100 {
		users = append(users, fmt.Sprint("U", i))
	}
	_, blocks = reminder(op, nil, users)
	if n := strings.Count(jsonOf(t, blocks), `"user_id"`); n != maxMentions {
		t.Errorf("%d people are called", n)
	}
}

func TestMeta(t *testing.T) {
	good := meta{Op: "0198c0de-4f6a-7c31-9a55-1f0e6a1d2b3c", Channel: "C024BE91L", Page: 3}
	if got, err := parseMeta(good.String()); err != nil || got != good {
		t.Errorf("%+v, %v", got, err)
	}
	for _, bad := range []string{
		"", "null", "{}", "[]", "3", "garbage", good.String() + "x", good.String() + good.String(), good.String()[:20],
		`{"op":"../x","channel":"C1"}`, `{"op":"a","channel":""}`, `{"op":"a","channel":"c1"}`,
		`{"op":"a","channel":"C1","page":-1}`, `{"op":"a","channel":"C1","page":99999999}`,
		`{"op":"a","channel":"C1","more":1}`, `{"op":["a"],"channel":"C1"}`,
	} {
		if got, err := parseMeta(bad); err == nil {
			t.Errorf("%s is read as %+v", bad, got)
		}
	}
}

func TestRefusal(t *testing.T) {
	seen := map[string]bool{}
	for _, err := range []error{
		approvals.ErrNotPending, approvals.ErrNotApprover, approvals.ErrBarred, approvals.ErrSelfApproval, approvals.ErrVoted,
		approvals.ErrReason, approvals.ErrNotGrantable, errNotWhole, errors.New("dial tcp: refused"),
	} {
		text := refusal(fmt.Errorf("%w: %s", err, "bea\u202e\n"+strings.Repeat("x", 9999)))
		if seen[text] || text == "" || len(text) > 600 || strings.ContainsAny(text, "\u202e\n") {
			t.Errorf("%v: %s", err, text)
		}
		seen[text] = true
	}
	op := endings()["rejected"]
	_, err := op.Vote(approvals.Person{ID: "slack:T/U", Name: "Dora"}, approvals.Ballot{Approve: true}, asked)
	if got, want := refusal(err), "Too late: this is no longer waiting for anybody (operation 0198c0de-4f6a-7c31-9a55-1f0e6a1d2b3c is REJECTED, rejected by Carl). Nothing more to do."; got != want {
		t.Errorf("%s; want %s", got, want)
	}
}
