package e2e

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"countersign/approvals/slack/slacktest"
	"countersign/e2e/rig"
)

// What the ConfigMaps of TestCrashPoints go through: patches need two people, a
// label one who may also approve the kind, an annotation one within four seconds.
const crashRules = `
  rules:
  - name: two
    effect: require_approval
    match: {tools: [patch_resource]}
    approval: {approvers: [operators], count: 2, expires: 30m, grant: never}
  - name: kind
    effect: require_approval
    match: {tools: [set_labels]}
    approval: {approvers: [operators], expires: 30m}
  - name: soon
    effect: require_approval
    match: {tools: [set_annotations]}
    approval: {approvers: [operators], expires: 4s, grant: never}
`

// crashPoint is one life of an operation with crashes in it.
type crashPoint struct {
	// story is what happens, see drive.
	story string
	// crashes are where each start of the server but the last ends, in the words of
	// the hook in storage/crash.go.
	crashes string
	// lost is a method of Slack's Web API whose first answer is lost. hung is one and
	// which call of it is done but not answered: meanwhile the server is killed.
	lost, hung string
	// want is how the message about the operation ends.
	want string
}

// What the message says at the end.
const (
	saysDone    = `Succeeded`
	saysApplied = `It was done, as the server found out afterwards`
	saysNotDone = `It was not done, as the server found out afterwards`
	// Where a crash during the delivery finds the execution is a matter of chance.
	saysAny = saysDone + `|` + saysApplied + `|` + saysNotDone
)

// crashPoints are all durable steps of an approved operation, and of those that
// end otherwise. A crash leaves what docs/design.md says under "Crash windows".
var crashPoints = []crashPoint{
	// Nobody was asked yet; the agent calls again.
	{story: "two", crashes: "before tool.intent 1", want: saysDone},
	{story: "two", crashes: "after tool.intent 1", want: saysDone},
	{story: "two", crashes: "before approval.requested 1", want: saysDone},
	{story: "two", crashes: "after approval.requested 1", want: saysDone},
	// Telling Slack: begun, posted, all told; told of the first vote; and what
	// came of the second, in as many steps as there was time for.
	{story: "two", crashes: "before delivery 1", want: saysDone},
	{story: "two", crashes: "after delivery 1", want: saysDone},
	{story: "two", crashes: "before delivery 2", want: saysDone},
	{story: "two", crashes: "after delivery 2", want: saysDone},
	{story: "two", crashes: "before delivery 3", want: saysDone},
	{story: "two", crashes: "after delivery 3", want: saysDone},
	{story: "two", crashes: "before delivery 4", want: saysDone},
	{story: "two", crashes: "after delivery 4", want: saysDone},
	{story: "two", crashes: "before delivery 5", want: saysAny},
	{story: "two", crashes: "after delivery 5", want: saysAny},
	{story: "two", crashes: "before delivery 6", want: saysAny},
	{story: "two", crashes: "after delivery 6", want: saysAny},
	// Votes.
	{story: "two", crashes: "before approval.voted 1", want: saysDone},
	{story: "two", crashes: "after approval.voted 1", want: saysDone},
	{story: "two", crashes: "before approval.voted 2", want: saysDone},
	{story: "two", crashes: "after approval.voted 2", want: saysDone},
	{story: "two", crashes: "before approval.decided 1", want: saysDone},
	{story: "two", crashes: "after approval.decided 1", want: saysDone},
	// Execution.
	{story: "two", crashes: "before exec.started 1", want: saysDone},
	{story: "two", crashes: "after exec.started 1", want: saysNotDone},
	{story: "two", crashes: "before exec.outcome 1", want: saysApplied},
	{story: "two", crashes: "after exec.outcome 1", want: saysDone},
	{story: "two", crashes: "after exec.started 1, before exec.unknown 1, after exec.unknown 1", want: saysNotDone},
	{story: "two", crashes: "before exec.outcome 1, before exec.reconciled 1, after exec.reconciled 1", want: saysApplied},
	// One thing after the other.
	{story: "two", crashes: "after approval.requested 1, after delivery 1, after approval.voted 1, after approval.voted 1, before exec.started 1", want: saysDone},
	// Slack did what it was asked and its answer is lost.
	{story: "two", lost: "chat.postMessage", want: saysDone},
	{story: "two", crashes: "before delivery 2", lost: "chat.postMessage", want: saysDone},
	{story: "two", crashes: "after delivery 2", lost: "chat.postMessage", want: saysDone},
	{story: "two", crashes: "before delivery 4", lost: "chat.update", want: saysDone},
	{story: "two", crashes: "after delivery 4", lost: "chat.update", want: saysDone},
	{story: "two", crashes: "before exec.outcome 1", lost: "chat.update", want: saysApplied},
	{story: "two", hung: "chat.postMessage 1", want: saysDone},
	{story: "two", hung: "chat.update 1", want: saysDone},
	{story: "two", hung: "chat.update 2", want: saysAny},
	{story: "two", hung: "chat.postMessage 2", want: saysDone}, // the outcome in the thread
	// Other ends.
	{story: "rejected", crashes: "before approval.voted 1", want: `Rejected by Bea Example`},
	{story: "rejected", crashes: "after approval.decided 1", want: `Rejected by Bea Example`},
	{story: "rejected", crashes: "before delivery 4", want: `Rejected by Bea Example`},
	{story: "rejected", crashes: "after delivery 4", want: `Rejected by Bea Example`},
	{story: "rejected", crashes: "before delivery 5", want: `Rejected by Bea Example`},
	{story: "stale", crashes: "before approval.requested 2", want: `Out of date: .*asked again as`},
	{story: "stale", crashes: "after approval.requested 2", want: `Out of date: .*asked again as`},
	{story: "stale", crashes: "before approval.decided 2, after approval.decided 1, after exec.started 1", want: `Out of date: .*asked again as`},
	{story: "expired", crashes: "before approval.decided 1", want: `Expired: nobody decided in time`},
	{story: "expired", crashes: "after approval.decided 1", want: `Expired: nobody decided in time`},
	{story: "expired", crashes: "after approval.requested 1", want: `Expired: nobody decided in time`},
	{story: "kind", crashes: "before grant.created 1", want: saysDone},
	{story: "kind", crashes: "after grant.created 1", want: saysDone},
	{story: "kind", crashes: "before exec.started 2", want: saysDone}, // of what runs under the grant
	{story: "kind", crashes: "after exec.started 2", want: saysDone},
}

// Wherever the server is killed, once or several times: nothing is sent twice, no
// vote that anybody has seen is lost, people are asked once, and Slack ends by
// showing how it ended.
func TestCrashPoints(t *testing.T) {
	binary, err := world.faulty()
	if err != nil {
		t.Fatal(err)
	}
	s := prepareStage(t, crashRules)
	s.configMaps(len(crashPoints))
	for i, point := range crashPoints {
		name := strings.TrimSpace(point.story + " " + point.crashes)
		if point.lost != "" {
			name += ", answer of " + point.lost + " lost"
		}
		if point.hung != "" {
			name = point.story + " killed in " + point.hung
		}
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			policy, err := os.ReadFile(filepath.Join(filepath.Dir(s.server.Config), "policy", "policy.yaml"))
			if err == nil {
				err = rig.WriteFiles(dir, map[string]string{"policy/policy.yaml": string(policy)})
			}
			if err != nil {
				t.Fatal(err)
			}
			p := &play{slackStage: &slackStage{stage: &stage{TB: t, ctx: t.Context(), namespace: s.namespace, proxy: s.proxy}}, point: point, name: fmt.Sprintf("c%d", i)}
			if p.server, err = newServer(dir, s.proxy.Kubeconfig); err != nil {
				t.Fatal(err)
			}
			p.server.Binary = binary
			p.ask("{wait: 100ms}")
			t.Cleanup(func() {
				if err := p.server.Stop(); err != nil {
					t.Error(err)
				}
			})
			p.run()
		})
	}
}

// play is one crashPoint as it goes.
type play struct {
	*slackStage
	point crashPoint
	name  string // of the ConfigMap
	ops   []string
	moved bool // story stale: somebody else has changed the object
	// hung is the method at whose call of this number the server is to be killed.
	hung   string
	killAt int
}

// errDied says that the server was killed, as the hook or the test has it.
var errDied = errors.New("the server has died")

func (p *play) run() {
	var crashes []string
	if p.point.crashes != "" {
		crashes = strings.Split(p.point.crashes, ", ")
	}
	if method, n, ok := strings.Cut(p.point.hung, " "); ok {
		crashes = []string{p.point.hung}
		p.hung, p.killAt = method, int(n[0]-'0')
		p.wire.Fail(method, p.killAt-1, slacktest.Trouble{Done: true}) // that is none
		p.wire.Fail(method, 1, slacktest.Trouble{Hang: true, Done: true})
	}
	if p.point.lost != "" {
		p.wire.Fail(p.point.lost, 1, slacktest.Trouble{Cut: true, Done: true})
	}
	for _, crash := range crashes {
		err := p.begin("COUNTERSIGN_CRASH=" + crash)
		if err == nil {
			err = p.drive()
		}
		if err == nil {
			err = p.until("the crash", func() bool { return false })
		}
		if !errors.Is(err, errDied) {
			p.Fatalf("%s: %v", crash, err)
		}
		p.hung = ""
		// What people were shown is on the disk.
		voted := p.votes()
		for _, m := range p.wire.Messages(slackChannel) {
			for _, who := range []string{"Bea", "Carl"} {
				if shows(m, who) && !slices.ContainsFunc(voted, func(v string) bool {
					op, person, _ := strings.Cut(v, " ")
					return strings.HasPrefix(person, who) && strings.Contains(string(m.Metadata), op)
				}) {
					p.Errorf("Slack shows a vote of %s that is not stored: %q", who, voted)
				}
			}
		}
	}
	err := p.begin()
	if err == nil {
		err = p.drive()
	}
	if err != nil {
		p.Fatal(err)
	}
	p.check()
}

// begin starts the server and makes it known when it dies.
func (p *play) begin(env ...string) error {
	p.server.Env = env
	if err := p.server.Start(p.ctx); err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) && exit.Exited() { // by itself: no crash
			return err
		}
		return p.failed(err)
	}
	exited := p.server.Exited()
	go func() {
		<-exited
		p.wire.SetGroup(slackGroup, slackPeople["bea"].ID, slackPeople["carl"].ID, slackPeople["dora"].ID) // wakes who awaits
	}()
	if p.agent == nil {
		p.agent = &rig.Agent{URL: p.server.URL, Token: world.token}
	}
	return nil
}

func (p *play) dead() bool {
	select {
	case <-p.server.Exited():
		return true
	default:
		return false
	}
}

// until waits until Slack shows something, or the server has died.
func (p *play) until(what string, ok func() bool) error {
	done := false
	if !p.wire.Await(2*time.Minute, func() bool {
		if p.hung != "" && len(p.wire.Calls(p.hung)) == p.killAt && !p.dead() {
			p.server.Kill()
		}
		done = ok()
		return done || p.dead()
	}) {
		return fmt.Errorf("never: %s", what)
	}
	if !done {
		return errDied
	}
	return nil
}

// drive does what people and the agent would do, from wherever things stand.
func (p *play) drive() error {
	if p.agent.Session == "" {
		if err := p.agent.Connect(p.ctx); err != nil {
			return p.failed(err)
		}
	}
	op, err := p.asked()
	if err != nil {
		return err
	}
	switch p.point.story {
	case "two":
		return p.agreed(op)
	case "rejected":
		if err := p.act(op, "bea", "reject"); err != nil {
			return err
		}
	case "stale":
		if err := p.until("the question", func() bool { _, ok := p.message(op); return ok }); err != nil {
			return err
		}
		if !p.moved {
			p.moved = true
			if _, err := world.cluster.Run(p.ctx, "", "patch", "configmap", p.name, "-n", p.namespace, "--type=merge", "-p", `{"data":{"value":"somebody else"}}`); err != nil {
				return err
			}
		}
		if err := p.agreed(op); err != nil {
			return err
		}
		again := ""
		if err := p.until("the second question", func() bool {
			for _, m := range p.wire.Messages(slackChannel) {
				if strings.Contains(m.Rendered(), "Asks again for "+op) {
					again = operationID.FindString(string(m.Metadata))
				}
			}
			return again != ""
		}); err != nil {
			return err
		}
		if !slices.Contains(p.ops, again) {
			p.ops = append(p.ops, again)
		}
		return p.agreed(again)
	case "kind":
		if err := p.act(op, "bea", "approve_kind"); err != nil {
			return err
		}
		if err := p.ended(op); err != nil {
			return err
		}
		return p.underGrant()
	}
	return p.ended(op)
}

// failed tells a call that died with the server from one that went wrong.
func (p *play) failed(err error) error {
	select {
	case <-p.server.Exited():
		return errDied
	case <-time.After(10 * time.Second): // the connection can end before the process is reaped
		return err
	}
}

// call is the agent's one call.
func (p *play) call(value string) (string, string, error) {
	tool, arguments := "patch_resource", fmt.Sprintf(`"patch":"{\"data\":{\"value\":%s}}"`, strings.ReplaceAll(fmt.Sprintf("%q", value), `"`, `\"`))
	switch p.point.story {
	case "kind":
		tool, arguments = "set_labels", fmt.Sprintf(`"set":{"tier":%q}`, value)
	case "expired":
		tool, arguments = "set_annotations", fmt.Sprintf(`"set":{"note":%q}`, value)
	}
	answer, err := p.agent.Call(p.ctx, tool, fmt.Sprintf(`{"kind":"configmap","namespace":%q,"name":%q,%s}`, p.namespace, p.name, arguments))
	if err != nil {
		return "", "", p.failed(err)
	}
	if answer.Structured.Op == "" {
		return "", "", fmt.Errorf("the call was answered with %+v", answer)
	}
	return answer.Structured.Op, answer.Structured.Status, nil
}

// asked is the operation that people are asked about. The agent calls until it
// has an answer; where the question is open already it joins that.
func (p *play) asked() (string, error) {
	if len(p.ops) > 0 {
		return p.ops[0], nil
	}
	op, _, err := p.call("b")
	if err == nil {
		p.ops = append(p.ops, op)
	}
	return op, err
}

// operationID is the form of an operation's id.
var operationID = regexp.MustCompile(`[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}`)

func (p *play) message(op string) (slacktest.Message, bool) {
	return about(p.wire.Messages(slackChannel), op)
}

// shows reports whether a message tells of a person's answer.
func shows(m slacktest.Message, who string) bool {
	return regexp.MustCompile(`(Approved|approved|Rejected) by [^\n]*` + who).MatchString(m.Rendered())
}

// agreed has bea and carl approve, each until the message shows it.
func (p *play) agreed(op string) error {
	for _, who := range []string{"bea", "carl"} {
		if err := p.act(op, who, "approve"); err != nil {
			return err
		}
	}
	return p.ended(op)
}

// act has a person click until the message shows that it counted, or that it is
// over. Slack may say that the person has voted already: then the message is late.
func (p *play) act(op, who, button string) error {
	user := slackPeople[who].ID
	name, _, _ := strings.Cut(slackPeople[who].RealName, " ")
	for {
		var m slacktest.Message
		over := func() bool { return shows(m, name) || ending.MatchString(m.Rendered()) }
		if err := p.until("the question, or a connection", func() bool {
			var ok bool
			m, ok = p.message(op)
			return ok && (over() || p.wire.Connections() > 0)
		}); err != nil || over() {
			return err
		}
		whispers := len(p.wire.Ephemerals(slackChannel, user))
		var d *slacktest.Delivery
		var err error
		if button == "reject" {
			v, open := p.wire.View(user)
			if !open {
				if d, err = p.wire.Click(user, slackChannel, m.TS, button); err != nil || !d.Acked {
					continue // the button is gone, or nobody is there
				}
				if err := p.until("the dialog", func() bool {
					v, open = p.wire.View(user)
					m, _ = p.message(op)
					return open || over() || len(p.wire.Ephemerals(slackChannel, user)) > whispers
				}); err != nil {
					return err
				}
			}
			if open {
				d, err = p.wire.Submit(user, v.ID, map[string]string{"reason": "not now"})
			}
		} else {
			d, err = p.wire.Click(user, slackChannel, m.TS, button)
		}
		if err != nil || !d.Acked {
			if p.dead() {
				return errDied
			}
			continue
		}
		if err := p.until("what became of the click of "+who, func() bool {
			m, _ = p.message(op)
			return over() || len(p.wire.Ephemerals(slackChannel, user)) > whispers
		}); err != nil {
			return err
		}
		if !over() {
			said := p.wire.Ephemerals(slackChannel, user)
			if text := said[len(said)-1].Text; !losing.MatchString(text) {
				return fmt.Errorf("%s is told: %s", who, text)
			}
			if err := p.until("a message that shows it", func() bool { m, _ = p.message(op); return over() }); err != nil {
				return err
			}
		}
	}
}

// ending is what messages say when it is over.
var ending = regexp.MustCompile(saysAny + `|Rejected by|Expired|Out of date|Failed|Denied|Whether it was done cannot be told`)

// ended waits until the message says how it ended.
func (p *play) ended(op string) error {
	return p.until("the end", func() bool {
		m, _ := p.message(op)
		return ending.MatchString(m.Rendered())
	})
}

// underGrant makes another change of the kind that was approved: nobody is asked.
func (p *play) underGrant() error {
	if len(p.ops) > 1 {
		return nil
	}
	op, status, err := p.call("c")
	if err != nil {
		return err
	}
	if status != "succeeded" {
		return fmt.Errorf("the call under the grant ended %s", status)
	}
	p.ops = append(p.ops, op)
	return nil
}

// votes lists who voted on what, as the log has it.
func (p *play) votes() []string {
	p.Helper()
	records, err := p.server.Export(p.ctx)
	if err != nil {
		p.Fatal(err)
	}
	var votes []string
	for _, r := range records {
		if r.Type == "approval.voted" && !strings.Contains(r.Raw, `"error":`) { // such a vote did not count
			votes = append(votes, r.Op+" "+r.Approval.By[0])
		}
	}
	return votes
}

// check looks at everything that was left.
func (p *play) check() {
	if text, err := p.server.Run(p.ctx, "audit", "verify"); err != nil {
		p.Errorf("%s%v", text, err)
	}
	records, err := p.server.Export(p.ctx)
	if err != nil {
		p.Fatal(err)
	}
	types := map[string][]string{}
	requested := map[string]bool{}
	for _, r := range records {
		types[r.Op] = append(types[r.Op], r.Type)
		requested[r.Op] = requested[r.Op] || r.Type == "approval.requested"
		if r.Type == "exec.started" && p.point.story != "kind" && len(slices.Compact(slices.Sorted(slices.Values(r.Approval.By)))) != 2 {
			p.Errorf("%s was approved by %q", r.Op, r.Approval.By)
		}
	}
	maps.DeleteFunc(requested, func(_ string, yes bool) bool { return !yes })
	count := func(op, name string) (n int) {
		for _, t := range types[op] {
			if t == name {
				n++
			}
		}
		return n
	}
	votes := p.votes()
	if slices.Sort(votes); len(slices.Compact(slices.Clone(votes))) != len(votes) {
		p.Errorf("somebody voted twice: %q", votes)
	}
	if cast := map[string]int{"two": 2, "stale": 4, "rejected": 1, "expired": 0, "kind": 1}[p.point.story]; len(votes) != cast {
		p.Errorf("the votes are %q", votes)
	}
	// One question for each operation that asked, and nothing else in the channel.
	want := 1
	if p.point.story == "stale" {
		want = 2
	}
	messages := p.wire.Messages(slackChannel)
	if len(messages) != want || len(requested) != want {
		p.Errorf("%d messages about %d questions, want %d", len(messages), len(requested), want)
	}
	for i, m := range messages {
		text, op := m.Rendered(), operationID.FindString(string(m.Metadata))
		says := p.point.want
		if i == 1 {
			says = saysAny // the question that took the other's place
		}
		if !requested[op] || !regexp.MustCompile(says).MatchString(text) || strings.Contains(text, "[Approve") || strings.Contains(text, "[Re") {
			p.Errorf("the message about %s ends:\n%s", op, text)
		}
		if len(m.Replies) > 1 {
			p.Errorf("%d outcomes are told of %s", len(m.Replies), op)
		}
	}
	// What Slack says is what the API server was asked for.
	p.eventually("the API server logs what was sent, and no more", func() bool {
		sent := executions(p)
		for op := range types {
			if sent[op] > 1 {
				p.Fatalf("%s was sent %d times", op, sent[op])
			}
		}
		for _, m := range messages {
			done := 0
			if regexp.MustCompile(saysDone + `|` + saysApplied).MatchString(m.Rendered()) {
				done = 1
			}
			if sent[operationID.FindString(string(m.Metadata))] != done {
				return false
			}
		}
		return p.point.story != "kind" || sent[p.ops[1]] == 1 || count(p.ops[1], "exec.reconciled") == 1
	})
	for _, op := range p.ops {
		if n := count(op, "exec.started"); n > 1 {
			p.Errorf("%s was started %d times", op, n)
		}
		if n := count(op, "exec.outcome") + count(op, "exec.reconciled"); n > 1 || n != count(op, "exec.started") {
			p.Errorf("%s has the records %s", op, types[op])
		}
	}
	status, err := p.server.Run(p.ctx, "status")
	if err != nil {
		p.Fatal(err)
	}
	p.Logf("%s; votes %d; status %s", strings.Join(types[p.ops[0]], " "), len(votes), regexp.MustCompile(`\d+ operations? to be told`).FindString(status))
	if p.point.story == "kind" && count(p.ops[0], "grant.created") != 1 {
		p.Errorf("%d grants", count(p.ops[0], "grant.created"))
	}
}
