package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"countersign/approvals"
	"countersign/approvals/slack/slacktest"
	"countersign/e2e/rig"
	"countersign/gate"
	"countersign/storage"
)

// A change that no message can hold is read to its end before it is approved, and
// what is dangerous in it, though it stands at the very end, is said at the top.
func TestHugeDiff(t *testing.T) {
	s := prepareSlackStage(t, `
  guardsOff: ["guard:host-access"]
  rules:
  - name: manifests
    effect: require_approval
    match: {tools: [apply_manifest]}
    approval: {approvers: [operators], expires: 30m}
`, "{wait: 100ms}")
	s.start()
	s.connect()
	s.listening()
	const entries = 1500
	var env []any
	for i := range entries {
		env = append(env, map[string]any{"name": fmt.Sprintf("ENTRY_%04d", i), "value": fmt.Sprintf("what entry %04d says is of no importance to anybody at all", i)})
	}
	manifest, err := json.Marshal(map[string]any{
		"apiVersion": "apps/v1", "kind": "Deployment", "metadata": map[string]any{"name": "huge", "namespace": s.namespace},
		"spec": map[string]any{"replicas": 0, "selector": map[string]any{"matchLabels": map[string]any{"app": "huge"}}, "template": map[string]any{
			"metadata": map[string]any{"labels": map[string]any{"app": "huge"}},
			"spec": map[string]any{
				"containers": []any{
					map[string]any{"name": "huge", "image": "registry.example/huge:1.0", "env": env},
					map[string]any{"name": "zz", "image": "registry.example/zz:1.0", "securityContext": map[string]any{"privileged": true}},
				},
				"volumes": []any{map[string]any{"name": "zz", "hostPath": map[string]any{"path": "/"}}},
			},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	arguments, err := json.Marshal(map[string]any{"manifest": string(manifest)})
	if err != nil {
		t.Fatal(err)
	}
	answer, err := s.agent.Call(s.ctx, "apply_manifest", string(arguments))
	if err != nil || answer.Structured.Status != "pending_approval" {
		t.Fatalf("%+v %v", answer, err)
	}
	op := answer.Structured.Op
	local, err := s.server.Run(s.ctx, "approvals", "show", op)
	if err != nil {
		t.Fatal(err)
	}
	if len(local) < 200<<10 {
		t.Fatalf("there are only %d bytes to read", len(local))
	}
	for _, danger := range []string{`"privileged": true`, `"hostPath": {`} {
		if at := strings.LastIndex(local, danger); at < len(local)-2000 {
			t.Errorf("%s stands at %d of %d", danger, at, len(local))
		}
	}

	m, err := waitAbout(s.wire, op, `\[Review`)
	if err != nil {
		t.Fatal(err)
	}
	text := m.Rendered()
	if strings.Contains(text, "[Approve") {
		t.Errorf("the message can be approved:\n%s", text)
	}
	top, _, found := strings.Cut(text, "too long for a message")
	if !found || !regexp.MustCompile(`securityContext/privileged: true`).MatchString(top) || !regexp.MustCompile(`hostPath: .*/`).MatchString(top) {
		t.Errorf("the message begins:\n%s", top)
	}
	bea, carl := slackPeople["bea"].ID, slackPeople["carl"].ID

	// A button that is not there.
	if _, err := s.wire.Click(carl, m.Channel, m.TS, "review", slacktest.Edited(func(payload map[string]any) {
		payload["actions"].([]any)[0].(map[string]any)["action_id"] = "approve"
	})); err != nil {
		t.Fatal(err)
	}
	if !s.wire.Await(time.Minute, func() bool {
		said := s.wire.Ephemerals(slackChannel, carl)
		return len(said) == 1 && !strings.Contains(said[0].Text, "already")
	}) {
		t.Errorf("carl is told %+v", s.wire.Ephemerals(slackChannel, carl))
	}

	// Page by page.
	if _, err := s.wire.Click(bea, m.Channel, m.TS, "review"); err != nil {
		t.Fatal(err)
	}
	page := func(number, of int) slacktest.View {
		t.Helper()
		var v slacktest.View
		where := fmt.Sprintf("Page %d of ", number)
		if of > 0 {
			where += strconv.Itoa(of)
		}
		if !s.wire.Await(time.Minute, func() bool { v, _ = s.wire.View(bea); return strings.Contains(v.Rendered(), where) }) {
			t.Fatalf("never %s:\n%s", where, v.Rendered())
		}
		return v
	}
	turn := func(v slacktest.View, button string) *slacktest.Delivery {
		t.Helper()
		d, err := s.wire.ViewClick(bea, v.ID, button)
		if err != nil {
			t.Fatal(err)
		}
		return d
	}
	v := page(1, 0)
	last, err := strconv.Atoi(regexp.MustCompile(`Page 1 of (\d+)`).FindStringSubmatch(v.Rendered())[1])
	if err != nil || last < 20 {
		t.Fatalf("%d pages, %v", last, err)
	}
	t.Logf("%d bytes on %d pages", len(local), last)
	read := preformatted(v)
	for number := 2; number <= last; number++ {
		if v.Submit != "" {
			t.Fatalf("page %d of %d can be approved", number-1, last)
		}
		d := turn(v, "next")
		if number == last/2 {
			s.submitForged(d.Payload)
		}
		v = page(number, last)
		read = append(read, preformatted(v)...)
	}
	whole := strings.ReplaceAll(strings.Join(read, "\n"), "\n      ↳ ", "")
	if got, want := strings.Split(strings.TrimSpace(whole), "\n"), strings.Split(strings.TrimSpace(local), "\n"); !slices.Equal(got, want) {
		for i := range min(len(got), len(want)) {
			if got[i] != want[i] {
				t.Fatalf("line %d of the pages is %q, and locally %q", i+1, got[i], want[i])
			}
		}
		t.Fatalf("the pages have %d lines, and locally there are %d", len(got), len(want))
	}
	// There and back.
	if turn(v, "previous"); page(last-1, last).Submit != "" {
		t.Errorf("the page before the last can be approved")
	}
	turn(v, "next")
	if v = page(last, last); v.Submit != "Approve" {
		t.Fatalf("the last page cannot be approved:\n%s", v.Rendered())
	}
	if got := s.types(op); got != "tool.intent policy.decided approval.requested" {
		t.Errorf("before the approval: %s", got)
	}
	if d, err := s.wire.Submit(bea, v.ID, nil); err != nil || !d.Acked {
		t.Fatalf("%+v %v", d, err)
	}
	if answer, err = s.agent.Call(s.ctx, "wait_for_operation", fmt.Sprintf(`{"op":%q}`, op)); err != nil || answer.Structured.Status != "succeeded" {
		t.Fatalf("%+v %v", answer, err)
	}
	if m, err := waitAbout(s.wire, op, `Succeeded. Approved by Bea Example`); err != nil || strings.Contains(m.Rendered(), "[Re") {
		t.Errorf("%s %v", m.Rendered(), err)
	}
	if got := s.types(op); got != "tool.intent policy.decided approval.requested approval.voted approval.decided exec.started exec.outcome" {
		t.Errorf("records: %s", got)
	}
	count, err := world.cluster.Run(s.ctx, "", "get", "deployment", "huge", "-n", s.namespace, "-o", "jsonpath={.spec.template.spec.containers[0].env[*].name}")
	if err != nil || len(strings.Fields(count)) != entries {
		t.Errorf("%d entries arrived, %v", len(strings.Fields(count)), err)
	}
}

// submitForged takes what was sent when a page was turned, and sends it as the
// approval that the page does not offer. The server answers when it has refused.
func (s *slackStage) submitForged(click json.RawMessage) {
	s.Helper()
	var payload map[string]any
	if err := json.Unmarshal(click, &payload); err != nil {
		s.Fatal(err)
	}
	payload["type"], payload["trigger_id"] = "view_submission", "1.2.3"
	delete(payload, "actions")
	delete(payload, "container")
	data, err := json.Marshal(payload)
	if err != nil {
		s.Fatal(err)
	}
	if d := s.wire.Deliver(data); !d.Acked {
		s.Errorf("forged submission: %+v", d)
	}
}

// preformatted is the text of a page.
func preformatted(v slacktest.View) []string {
	var out []string
	list := func(v any) []any { all, _ := v.([]any); return all }
	for _, block := range v.Blocks {
		for _, e := range list(block["elements"]) {
			element, _ := e.(map[string]any)
			if element["type"] != "rich_text_preformatted" {
				continue
			}
			for _, t := range list(element["elements"]) {
				text, _ := t.(map[string]any)["text"].(string)
				out = append(out, text)
			}
		}
	}
	return out
}

// manyPending is how many operations wait in a server that is used a lot.
const manyPending = 10_000

// fillPending makes many operations wait in the store of a stage: one that was
// really asked, again and again, for 500 principals.
func (s *slackStage) fillPending() {
	s.Helper()
	s.configMaps(1)
	s.start()
	s.connect()
	op := s.patch(0).Structured.Op
	if _, err := waitAbout(s.wire, op, `\[Approve`); err != nil {
		s.Fatal(err)
	}
	// Withdrawn, it is not in the way.
	if _, err := s.agent.Call(s.ctx, "cancel_operation", fmt.Sprintf(`{"op":%q}`, op)); err != nil {
		s.Fatal(err)
	}
	if !s.wire.Await(time.Minute, func() bool {
		m, _ := about(s.wire.Messages(slackChannel), op)
		return len(m.Replies) > 0 // the outcome, which is told last
	}) {
		s.Fatal("the end was never told")
	}
	if err := s.server.Stop(); err != nil {
		s.Fatal(err)
	}
	store, err := storage.Open(filepath.Join(filepath.Dir(s.server.Config), "data", "countersign.db"), storage.Options{Messenger: true})
	if err != nil {
		s.Fatal(err)
	}
	defer store.Close()
	model, err := store.Operation(op)
	if err != nil {
		s.Fatal(err)
	}
	told, err := store.Delivery(op)
	if err != nil {
		s.Fatal(err)
	}
	model.State, model.Reason, model.Revision = approvals.PendingApproval, "", 1
	model.Expires = time.Now().Add(24 * time.Hour)
	size, err := json.Marshal(model)
	if err != nil {
		s.Fatal(err)
	}
	var b gate.Batch
	for i := range manyPending {
		next, message := model, told.Messages[0]
		next.ID = fmt.Sprintf("%s%012x", op[:24], i)
		next.Principal.Subject = fmt.Sprintf("system:serviceaccount:agents:a%d", i%500)
		next.Principal.Username = next.Principal.Subject
		next.Question = fmt.Sprintf("%s %d", model.Question, i)
		message.Timestamp, message.Revision, message.Told = fmt.Sprintf("%d.%06d", time.Now().Unix()-3600, i), 1, false
		b.Operations = append(b.Operations, next)
		b.Deliveries = append(b.Deliveries, approvals.Delivery{Op: next.ID, Revision: 1, Messages: []approvals.Message{message}})
		if len(b.Operations) == 1000 {
			if err := store.Commit(context.Background(), b); err != nil {
				s.Fatal(err)
			}
			b = gate.Batch{}
		}
	}
	s.Logf("%d operations of %d bytes", manyPending, len(size))
}

// patch changes what was asked for in fillPending into something new.
func (s *slackStage) patch(n int) rig.Answer {
	s.Helper()
	var fields []string
	for i := range 10 {
		fields = append(fields, fmt.Sprintf(`"motto.%d":"the campaign of week %d, as the calendar of the shop has it"`, i, n))
	}
	answer, err := s.agent.Call(s.ctx, "patch_resource", fmt.Sprintf(`{"kind":"configmap","namespace":%q,"name":"c0","reason":"the campaign begins at nine, and everything has to be there before the first customers are","patch":%q}`,
		s.namespace, `{"data":{`+strings.Join(fields, ",")+`}}`))
	if err != nil {
		s.Fatal(err)
	}
	return answer
}

const manyRules = `
  guardsOff: ["guard:loop"]
  rules:
  - name: change
    effect: require_approval
    match: {tools: [patch_resource]}
    approval: {approvers: [operators], expires: 24h}
`

// With ten thousand questions open the server starts, tells nobody anything anew,
// and the next question goes its way.
func TestManyPending(t *testing.T) {
	s := prepareSlackStage(t, manyRules, "{wait: 100ms}")
	s.fillPending()
	posts := len(s.wire.Calls("chat.postMessage"))
	s.start()
	s.listening()
	op := s.patch(1).Structured.Op
	m, err := waitAbout(s.wire, op, `\[Approve`)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := s.wire.Click(slackPeople["bea"].ID, m.Channel, m.TS, "approve"); err != nil {
		t.Fatal(err)
	}
	if answer, err := s.agent.Call(s.ctx, "wait_for_operation", fmt.Sprintf(`{"op":%q}`, op)); err != nil || answer.Structured.Status != "succeeded" {
		t.Fatalf("%+v %v", answer, err)
	}
	// One of the others is decided as well, and those that wait are still there.
	old := s.pending()[manyPending/2]
	if _, err := s.server.Run(s.ctx, "approvals", "reject", old, "--reason", "not now"); err != nil {
		t.Fatal(err)
	}
	if left := len(s.pending()); left != manyPending-1 {
		t.Errorf("%d operations wait", left)
	}
	s.eventually("Slack knows everything", func() bool {
		status, err := s.server.Run(s.ctx, "status")
		return err == nil && strings.Contains(status, "every question is shown as it stands")
	})
	if n := len(s.wire.Calls("chat.postMessage")) - posts; n > 2 { // the question and its outcome
		t.Errorf("%d messages were posted", n)
	}
}

// pending lists the operations that wait.
func (s *slackStage) pending() []string {
	s.Helper()
	text, err := s.server.Run(s.ctx, "approvals", "list")
	if err != nil {
		s.Fatal(err)
	}
	return operationID.FindAllString(text, -1)
}

// BenchmarkQuestionAmongMany measures one question from the agent's call to the
// message in Slack, and from the click to the agent's answer, while ten thousand
// others wait: our own time, without that of the API server. It also tells how
// long that server took to start, which the work for it bounds on a machine that
// does other things too, and how much memory it has.
func BenchmarkQuestionAmongMany(b *testing.B) {
	s := prepareSlackStage(b, manyRules, "{wait: 100ms}")
	s.fillPending()
	if err := rig.Replace(s.server.Config, "{wait: 100ms}", "{wait: 45s}"); err != nil {
		b.Fatal(err)
	}
	var startup, work []float64
	for range 5 {
		if startup != nil {
			if err := s.server.Stop(); err != nil {
				b.Fatal(err)
			}
		}
		start := time.Now()
		s.start()
		startup = append(startup, time.Since(start).Seconds()*1000)
		work = append(work, float64(rig.CPU(s.server.PID()).Milliseconds()))
		s.listening()
	}
	asked := 0
	var asking, answering, api []float64
	for b.Loop() {
		asked++
		posted := len(s.wire.Messages(slackChannel))
		before, start := s.proxy.Spent(), time.Now()
		done := make(chan rig.Answer, 1)
		go func() { done <- s.patch(asked) }()
		var m slacktest.Message
		if !s.wire.Await(time.Minute, func() bool {
			if all := s.wire.Messages(slackChannel); len(all) > posted {
				m = all[len(all)-1]
			}
			return m.TS != ""
		}) {
			b.Fatal("nobody was asked")
		}
		seconds, err := strconv.ParseFloat(m.TS, 64)
		if err != nil {
			b.Fatal(err)
		}
		spent := s.proxy.Spent()
		asking = append(asking, seconds*1000-float64(start.UnixMicro())/1000-(spent-before).Seconds()*1000)
		clicked := time.Now()
		if _, err := s.wire.Click(slackPeople["bea"].ID, m.Channel, m.TS, "approve"); err != nil {
			b.Fatal(err)
		}
		answer := <-done
		took := time.Since(clicked)
		if answer.Structured.Status != "succeeded" {
			b.Fatalf("%+v", answer)
		}
		more := s.proxy.Spent() - spent
		answering = append(answering, (took-more).Seconds()*1000)
		api = append(api, (spent-before+more).Seconds()*1000)
	}
	_, rss := rig.Memory(s.server.PID())
	b.ReportMetric(rss, "RSS-MB")
	median := func(all []float64) float64 { slices.Sort(all); return all[len(all)/2] }
	b.ReportMetric(median(startup), "start-p50-ms")
	b.ReportMetric(median(work), "start-cpu-p50-ms")
	b.ReportMetric(median(asking), "asking-p50-ms")
	b.ReportMetric(median(answering), "answering-p50-ms")
	b.ReportMetric(median(api), "api-p50-ms")
}
