package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"flag"
	"fmt"
	"math/rand/v2"
	"net/http"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"text/tabwriter"
	"time"

	"golang.org/x/sync/errgroup"

	"countersign/approvals/slack/slacktest"
	"countersign/e2e/rig"
	"countersign/storage"
)

var soakFor = flag.Duration("soak", 0, "how long the agents of TestSoak work; it is left out without")

const (
	soakAgents, soakNodes = 100, 200
	// The namespace of each agent has 100 pods.
	soakApps, soakReplicas = 8, 12
	soakPods               = soakAgents * (soakApps*soakReplicas + 2 + 2)
	// An agent that works makes a call every twenty seconds or so. Here it thinks for
	// 1.7 s, half as long again or half as short: an hour of that in five minutes, which
	// two cores hold together with the control plane. So nothing here is saturated.
	soakThink = 1700 * time.Millisecond
	// One team in ten asks in a channel of its own.
	soakChannels = 10
)

// soakCluster is what the control plane is started with.
func soakCluster() (flags []string) {
	if *soakFor > 0 {
		flags = []string{"--nodes", strconv.Itoa(soakNodes)}
	}
	return flags
}

const soakPolicy = `
apiVersion: countersign/v1alpha1
kind: Policy
metadata: {name: soak}
spec:
  rules:
  - name: look
    effect: allow
    match: {principals: &who {groups: [agents]}, verbs: [get, list, watch], resources: ["*", "!secrets"], subresources: ["", log, status, scale]}
  - name: change
    effect: allow
    match: {principals: *who, tools: ["*", "!scale_deployment"], verbs: [create, patch], resources: [deployments.apps, configmaps], names: [small, notes]}
  - name: scale
    effect: allow
    match: {principals: *who, tools: [scale_deployment], names: [small]}
    when: object.spec.replicas <= 5
  - name: ask
    effect: require_approval
    match: {principals: *who, verbs: [create, patch, delete], resources: [deployments.apps, configmaps], names: [payments, settings, "old-*"]}
    approval: {approvers: [operators], expires: 20s}
  limits:
  - {name: changes, match: {verbs: [create, update, patch, delete]}, calls: 60, per: 1m}
`

// soak is one server with what is needed around it, and what was seen of it.
type soak struct {
	testing.TB
	ctx      context.Context
	issuer   *rig.Issuer
	server   *rig.Server
	log      string // what the server writes to stderr
	profiles string
	wire     *slacktest.Server
	pods     []soakPod
	straight []soakCall // of the API server, beside it all

	mu      sync.Mutex
	calls   []soakCall
	decided map[string]string // by operation: what a person did, as the status that comes of it
	unheard int               // clicks that were not acknowledged in three seconds
	failed  int               // calls; an agent stops at its first
}

// soakPod is a pod that nobody changes.
type soakPod struct{ namespace, name, node string }

// soakCall is one call that was answered.
type soakCall struct {
	class    string // read, change, approval or straight
	tool, op string
	status   string
	at, took time.Duration // at is from the beginning of the work
}

// TestSoak is an hour of an organisation's agents in the time that -soak gives: make
// soak. Nothing fails, each answer is in the log, what was refused never reached the
// cluster, and what the server holds does not grow. Times are told and not judged.
func TestSoak(t *testing.T) {
	if *soakFor == 0 {
		t.Skip("only with -soak, as make soak has it")
	}
	s := newSoak(t)
	s.populate()
	agents := make([]*soakAgent, soakAgents)
	for i := range agents {
		agents[i] = s.agent(i)
	}
	asked, answered := context.WithCancel(s.ctx)
	defer answered()
	var people sync.WaitGroup
	for i, name := range []string{"bea", "carl", "dora"} {
		people.Go(func() { s.person(asked, i, slackPeople[name].ID) })
	}

	footprints := []footprint{s.footprint()}
	begin := time.Now()
	people.Go(func() { s.beside(asked, begin) })
	var work sync.WaitGroup
	for _, a := range agents {
		work.Go(func() { a.work(begin) })
	}
	for _, share := range []time.Duration{2, 1} {
		s.sleep(time.Until(begin.Add(*soakFor / share)))
		footprints = append(footprints, s.footprint())
	}
	work.Wait()
	elapsed := time.Since(begin)
	answered()
	people.Wait()
	for i, name := range footprintNames {
		if middle, end := footprints[1][i], footprints[2][i]; end > 1.5*middle {
			t.Errorf("%s: %.0f half way and %.0f at the end", name, middle, end)
		}
	}

	records, verified := s.verify()
	s.compare(records)
	s.closed()
	s.report(elapsed, footprints, len(records), verified)
}

func newSoak(t *testing.T) *soak {
	s := &soak{TB: t, ctx: t.Context(), decided: map[string]string{}}
	check := func(err error) {
		if err != nil {
			t.Fatal(err)
		}
	}
	var err error
	s.issuer, err = rig.StartIssuer()
	check(err)
	t.Cleanup(func() { s.issuer.Close() })
	dir := t.TempDir()
	binary, err := rig.BuildServer(s.ctx, dir, "-tags", "profile")
	check(err)
	check(rig.WriteFiles(dir, map[string]string{"policy/policy.yaml": soakPolicy}))
	s.server, err = newServer(dir, world.cluster.Kubeconfig)
	check(err)
	address, err := rig.FreeAddress()
	check(err)
	s.profiles = "http://" + address + "/debug/pprof/"
	s.server.Binary, s.server.Env = binary, []string{"COUNTERSIGN_PROFILE=" + address}
	s.wire, err = newSlack(dir, s.server, ", channelLabel: team")
	check(err)
	t.Cleanup(s.wire.Close)
	for i := range soakChannels {
		s.wire.AddChannel(slacktest.Channel{ID: soakChannel(i)})
	}
	// The limits on callers are those that a server has by itself. Some questions are
	// answered while the call waits, and some later.
	check(rig.Replace(s.server.Config, "issuers: [", fmt.Sprintf("issuers: [{url: %q, groupsClaim: groups}, ", s.issuer.URL)))
	check(rig.Replace(s.server.Config, "limits: {perPrincipal: 10000, perAddress: 10000}", "audit: {anchors: {every: 1m}}"))
	check(rig.Replace(s.server.Config, "approvals: {wait: 100ms}", "approvals: {wait: 2s}"))
	log, err := os.Create(filepath.Join(dir, "server.log"))
	check(err)
	t.Cleanup(func() { log.Close() })
	s.server.Log, s.log = log, log.Name()
	return s
}

func soakChannel(i int) string   { return fmt.Sprintf("CTEAM%04d", i) }
func soakNamespace(i int) string { return fmt.Sprintf("team-%d", i) }

// populate makes the namespaces with all that is in them, and waits for their pods.
func (s *soak) populate() {
	s.Helper()
	start := time.Now()
	group, ctx := errgroup.WithContext(s.ctx)
	group.SetLimit(8)
	for i := range soakAgents {
		var objects strings.Builder
		namespace := soakNamespace(i)
		fmt.Fprintf(&objects, "---\n{apiVersion: v1, kind: Namespace, metadata: {name: %s, labels: {team: %s}}}\n", namespace, soakChannel(i%soakChannels))
		deployment := func(name, tier string, replicas int) {
			fmt.Fprintf(&objects, `---
{apiVersion: apps/v1, kind: Deployment, metadata: {name: %[1]s, namespace: %[2]s, labels: {tier: %[3]s}}, spec: {replicas: %[4]d,
  selector: {matchLabels: {app: %[1]s}}, template: {metadata: {labels: {app: %[1]s, tier: %[3]s}}, spec: {containers: [
    {name: web, image: "registry.example/web:1.0", env: [{name: PORT, value: "8080"}], resources: {requests: {cpu: 10m, memory: 16Mi}}}]}}}}
`, name, namespace, tier, replicas)
		}
		for k := range soakApps {
			deployment(fmt.Sprint("app-", k), "steady", soakReplicas)
		}
		deployment("small", "changing", 2)
		deployment("payments", "changing", 2)
		for _, name := range append(old(), "notes", "settings") {
			fmt.Fprintf(&objects, "---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: %s, namespace: %s}, data: {value: \"0\"}}\n", name, namespace)
		}
		group.Go(func() error {
			_, err := world.cluster.Run(ctx, objects.String(), "create", "-f", "-")
			return err
		})
	}
	if err := group.Wait(); err != nil {
		s.Fatal(err)
	}
	s.Logf("everything was made after %s", time.Since(start).Round(time.Second))
	for ready := 0; ready < soakPods; {
		s.sleep(2 * time.Second)
		text, err := world.cluster.Run(s.ctx, "", "get", "deployments", "-A", "-o", "jsonpath={.items[*].status.readyReplicas}")
		if err != nil {
			s.Fatal(err)
		}
		ready = 0
		for _, n := range strings.Fields(text) {
			one, _ := strconv.Atoi(n)
			ready += one
		}
		if time.Since(start) > 20*time.Minute {
			s.Fatalf("only %d of %d pods are ready", ready, soakPods)
		}
	}
	s.Logf("%d pods were ready after %s", soakPods, time.Since(start).Round(time.Second))
	text, err := world.cluster.Run(s.ctx, "", "get", "pods", "-A", "-l", "tier=steady",
		"-o", `jsonpath={range .items[*]}{.metadata.namespace} {.metadata.name} {.spec.nodeName}{"\n"}{end}`)
	if err != nil {
		s.Fatal(err)
	}
	for line := range strings.Lines(text) {
		f := strings.Fields(line)
		s.pods = append(s.pods, soakPod{f[0], f[1], f[2]})
	}
	if err := s.server.Start(s.ctx); err != nil {
		s.Fatal(err)
	}
	s.Cleanup(func() { s.server.Stop() })
	if !s.wire.Await(time.Minute, func() bool { return s.wire.Connections() > 0 }) {
		s.Fatal("the server never connected to Slack")
	}
}

// old are the ConfigMaps that are there to be deleted.
func old() (names []string) {
	for i := range 10 {
		names = append(names, fmt.Sprint("old-", i))
	}
	return names
}

// sleep is the pace of the work, and ends with the test.
func (s *soak) sleep(d time.Duration) {
	select {
	case <-time.After(d):
	case <-s.ctx.Done():
	}
}

// soakAgent is an agent with a token, a connection, a session and a namespace of its own.
type soakAgent struct {
	*soak
	agent     *rig.Agent
	random    *rand.Rand
	namespace string
	serial    int // of its changes, so that each is another
	replicas  int // of the Deployment small
	left      []string
	restarted bool // by the latest change: kubectl's code refuses two in a second
}

func (s *soak) agent(i int) *soakAgent {
	s.Helper()
	token, err := s.issuer.Token(map[string]any{"sub": fmt.Sprint("agent-", i), "aud": audience, "groups": []string{"agents"}})
	if err != nil {
		s.Fatal(err)
	}
	a := &soakAgent{
		soak: s, agent: &rig.Agent{URL: s.server.URL, Token: token, Client: &http.Client{Transport: &http.Transport{}}},
		random: rand.New(rand.NewPCG(1, uint64(i))), namespace: soakNamespace(i), replicas: 2, left: old(),
	}
	s.Cleanup(a.agent.Client.CloseIdleConnections)
	if err := a.agent.Connect(s.ctx); err != nil {
		s.Fatal(err)
	}
	return a
}

// work is what an agent does until the time is over.
func (a *soakAgent) work(begin time.Time) {
	for {
		a.sleep(soakThink/2 + time.Duration(a.random.Int64N(int64(soakThink))))
		if time.Since(begin) > *soakFor {
			return
		}
		class, n := "read", a.random.IntN(100)
		next := a.read
		switch {
		case n < 5:
			class, next = "approval", a.ask
		case n < 20:
			class, next = "change", a.change
		}
		tool, args := next()
		at := time.Now()
		answer, err := a.agent.Call(a.ctx, tool, args)
		took, op := time.Since(at), answer.Structured.Op
		for err == nil && answer.Structured.Status == "pending_approval" {
			answer, err = a.agent.Call(a.ctx, "wait_for_operation", fmt.Sprintf(`{"op":%q}`, op))
		}
		one := soakCall{class: class, tool: tool, op: op, status: answer.Structured.Status, at: at.Sub(begin), took: took}
		if class == "read" && one.status == "" && len(answer.Text) > 100 {
			one.status = "succeeded" // a read that succeeds answers with nothing but text
		}
		if err != nil || class != "approval" && (one.status != "succeeded" || answer.IsError) {
			a.Errorf("%s %s %s after %s: %+v %v", a.namespace, tool, args, one.at, answer, err)
			a.mu.Lock()
			a.failed++
			a.mu.Unlock()
			return
		}
		a.mu.Lock()
		a.calls = append(a.calls, one)
		a.mu.Unlock()
	}
}

// beside asks the API server straight meanwhile: where that takes longer too, the machine
// and the cluster have more to do, and not the server.
func (s *soak) beside(ctx context.Context, begin time.Time) {
	path := "/apis/apps/v1/namespaces/" + soakNamespace(0) + "/deployments/app-0"
	ask := (&benched{TB: s.TB, ctx: ctx}).straight(http.MethodGet, path, nil, nothing, "readyReplicas")
	for ctx.Err() == nil {
		at := time.Now()
		if _, err := ask(0); err != nil {
			if ctx.Err() == nil {
				s.Error(err)
			}
			return
		}
		s.straight = append(s.straight, soakCall{class: "straight", at: at.Sub(begin), took: time.Since(at)})
		s.sleep(100 * time.Millisecond)
	}
}

// read picks something to look at, mostly in the agent's own namespace.
func (a *soakAgent) read() (tool, args string) {
	pod := a.pods[a.random.IntN(len(a.pods))]
	namespace := a.namespace
	if a.random.IntN(4) == 0 {
		namespace = pod.namespace
	}
	app := fmt.Sprint("app-", a.random.IntN(soakApps))
	workload := fmt.Sprintf(`{"kind":"deployment","namespace":%q,"name":%q}`, namespace, app)
	onePod := fmt.Sprintf(`{"kind":"pod","namespace":%q,"name":%q}`, pod.namespace, pod.name)
	switch n := a.random.IntN(100); {
	case n < 20:
		return "get_resource", workload
	case n < 30:
		return "get_resource", onePod
	case n < 45:
		return "list_resources", fmt.Sprintf(`{"kind":"pods","namespace":%q}`, namespace)
	case n < 50:
		return "list_resources", fmt.Sprintf(`{"kind":"pods","all_namespaces":true,"label_selector":"app=%s"}`, app)
	case n < 53:
		return "list_resources", fmt.Sprintf(`{"kind":"pods","all_namespaces":true,"field_selector":"spec.nodeName=%s"}`, pod.node)
	case n < 55:
		return "list_resources", `{"kind":"nodes"}`
	case n < 70:
		return "get_pod_logs", fmt.Sprintf(`{"namespace":%q,"pod":%q}`, pod.namespace, pod.name)
	case n < 78:
		return "describe_resource", onePod
	case n < 84:
		return "describe_resource", workload
	case n < 90:
		return "get_rollout_status", workload
	case n < 94:
		return "diagnose_workload", workload
	case n < 97:
		return "list_events", fmt.Sprintf(`{"namespace":%q}`, namespace)
	default:
		return "list_namespaces", `{}`
	}
}

// change picks a change that policy allows.
func (a *soakAgent) change() (tool, args string) {
	a.serial++
	n := a.random.IntN(100)
	again := a.restarted
	a.restarted = false
	switch {
	case n < 10 && !again:
		a.restarted = true
		return "restart_rollout", fmt.Sprintf(`{"kind":"deployment","namespace":%q,"name":"small"}`, a.namespace)
	case n < 40:
		a.replicas = 2 + (a.replicas+a.random.IntN(2))%3 // another than before
		return "scale_deployment", fmt.Sprintf(`{"namespace":%q,"name":"small","replicas":%d}`, a.namespace, a.replicas)
	case n < 50:
		return "set_image", fmt.Sprintf(`{"kind":"deployment","namespace":%q,"name":"small","image":"registry.example/web:1.%d"}`, a.namespace, a.serial)
	case n < 65:
		return "set_labels", fmt.Sprintf(`{"kind":"deployment","namespace":%q,"name":"small","set":{"build":"%d"}}`, a.namespace, a.serial)
	case n < 80:
		return "patch_resource", fmt.Sprintf(`{"kind":"configmap","namespace":%q,"name":"notes","patch":"{\"data\":{\"patched\":\"%d\"}}"}`, a.namespace, a.serial)
	default:
		return "apply_manifest", fmt.Sprintf(`{"manifest":"{apiVersion: v1, kind: ConfigMap, metadata: {name: notes, namespace: %s}, data: {applied: \"%d\"}}"}`,
			a.namespace, a.serial)
	}
}

// ask picks a change that a person decides on.
func (a *soakAgent) ask() (tool, args string) {
	a.serial++
	n := a.random.IntN(3)
	switch {
	case n == 0 && len(a.left) > 0:
		name := a.left[0]
		a.left = a.left[1:]
		return "delete_resource", fmt.Sprintf(`{"kind":"configmap","namespace":%q,"name":%q,"reason":"nothing refers to it"}`, a.namespace, name)
	case n == 1:
		return "set_image", fmt.Sprintf(`{"kind":"deployment","namespace":%q,"name":"payments","image":"registry.example/pay:1.%d"}`, a.namespace, a.serial)
	default:
		return "patch_resource", fmt.Sprintf(`{"kind":"configmap","namespace":%q,"name":"settings","patch":"{\"data\":{\"value\":\"%d\"}}","reason":"the sale begins"}`,
			a.namespace, a.serial)
	}
}

// person looks at every third channel, and answers what is asked there within three
// seconds: one question in twenty never, and three with a rejection.
func (s *soak) person(ctx context.Context, i int, user string) {
	random := rand.New(rand.NewPCG(2, uint64(i)))
	due := map[string]time.Time{}
	for tick := time.Tick(250 * time.Millisecond); ; {
		select {
		case <-ctx.Done():
			return
		case <-tick:
		}
		for channel := i; channel < soakChannels; channel += 3 {
			for _, m := range s.wire.Messages(soakChannel(channel)) {
				at, seen := due[m.TS]
				switch {
				case !seen:
					due[m.TS] = time.Now().Add(time.Duration(random.Int64N(int64(3 * time.Second))))
					continue
				case at.IsZero() || time.Now().Before(at):
					continue
				}
				due[m.TS] = time.Time{}
				var status string
				var err error
				switch n := random.IntN(20); {
				case n == 0:
					status = "expired"
				case n < 4:
					status, err = "rejected", s.reject(user, m)
				default:
					var d *slacktest.Delivery
					if d, err = s.wire.Click(user, m.Channel, m.TS, "approve"); err == nil {
						s.heard(d)
					}
					status = "succeeded"
				}
				if err != nil {
					s.Errorf("%s: %v", m.Rendered(), err)
					return
				}
				s.mu.Lock()
				s.decided[operationID.FindString(string(m.Metadata))] = status
				s.mu.Unlock()
			}
		}
	}
}

// reject goes through the dialog that asks why.
func (s *soak) reject(user string, m slacktest.Message) error {
	before, _ := s.wire.View(user)
	d, err := s.wire.Click(user, m.Channel, m.TS, "reject")
	if err != nil {
		return err
	}
	s.heard(d)
	var v slacktest.View
	if !s.wire.Await(time.Minute, func() bool {
		var open bool
		v, open = s.wire.View(user)
		return open && v.ID != before.ID
	}) {
		return fmt.Errorf("nobody asks %s why", user)
	}
	if d, err = s.wire.Submit(user, v.ID, map[string]string{"reason": "not during the sale"}); err == nil {
		s.heard(d)
	}
	return err
}

func (s *soak) heard(d *slacktest.Delivery) {
	if d.Acked {
		return
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.unheard++
}

// footprint is what the server holds: its live heap, what it has allocated and what
// it has in memory in all, in MB; goroutines; open files.
type footprint [5]float64

var (
	footprintNames = [...]string{"live heap in MB", "allocated in MB", "RSS in MB", "goroutines", "open files"}

	heapAlloc  = regexp.MustCompile(`(?m)^# HeapAlloc = (\d+)$`)
	goroutines = regexp.MustCompile(`^goroutine profile: total (\d+)`)
)

func (s *soak) footprint() (f footprint) {
	s.Helper()
	number := func(path string, re *regexp.Regexp) float64 {
		text, err := fetch(s.ctx, s.profiles+path)
		m := re.FindSubmatch(text)
		if err != nil || m == nil {
			s.Fatalf("%s: %v %.300s", path, err, text)
		}
		n, _ := strconv.ParseFloat(string(m[1]), 64)
		return n
	}
	f[1], f[2] = rig.Memory(s.server.PID()) // before a collection that nobody asks for elsewhere
	f[0] = number("heap?gc=1&debug=1", heapAlloc) / (1 << 20)
	f[3] = number("goroutine?debug=1", goroutines)
	files, _ := os.ReadDir(fmt.Sprintf("/proc/%d/fd", s.server.PID()))
	f[4] = float64(len(files))
	return f
}

// verify verifies the log of the server that runs, and an export of it, which it returns.
func (s *soak) verify() (records []rig.Record, said string) {
	s.Helper()
	dir := filepath.Dir(s.server.Config)
	export, checkpoint := filepath.Join(dir, "audit.jsonl"), filepath.Join(dir, "audit.checkpoint")
	for _, row := range []struct {
		output string
		args   []string
	}{
		{filepath.Join(dir, "verified"), []string{"audit", "verify"}},
		{export, []string{"audit", "export", "--checkpoint", checkpoint}},
		{os.DevNull, []string{"audit", "verify", export, "--checkpoint", checkpoint, "--key", filepath.Join(dir, "data", "audit.pub")}},
		{os.DevNull, []string{"status"}}, // is an error when something is wrong
	} {
		if _, err := command(s.server, row.output, row.args...); err != nil {
			s.Fatal(err)
		}
	}
	f, err := os.Open(export)
	if err != nil {
		s.Fatal(err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 1<<20)
	for lines.Scan() {
		var r rig.Record
		if err := json.Unmarshal(lines.Bytes(), &r); err != nil {
			s.Fatal(err)
		}
		if records = append(records, r); r.Seq != uint64(len(records)) {
			s.Fatalf("record %d is in the place of record %d", r.Seq, len(records))
		}
	}
	text, err := os.ReadFile(filepath.Join(dir, "verified"))
	if err != nil || lines.Err() != nil {
		s.Fatal(err, lines.Err())
	}
	return records, strings.Join(strings.Fields(string(text)), " ")
}

// compare compares the answers with the log, with what people did, and with what the
// API server says it was sent.
func (s *soak) compare(records []rig.Record) {
	s.Helper()
	type story struct{ tool, said string }
	stories := map[string]*story{}
	for _, r := range records {
		switch r.Type {
		case "call.refused", "login.refused", "rate.limited", "exec.unknown", "exec.reconciled", "session.ended":
			s.Errorf("record %d is %s", r.Seq, r.Type)
		}
		// A call that waits for an operation is recorded as a part of it.
		if r.Op == "" || r.Tool != nil && r.Tool.Name == "wait_for_operation" {
			continue
		}
		if stories[r.Op] == nil {
			stories[r.Op] = &story{}
		}
		if stories[r.Op].said += " " + r.Type + ":" + r.Outcome; r.Tool != nil {
			stories[r.Op].tool = r.Tool.Name
		}
	}
	sent := executions(s)
	classes, reads := map[string]int{}, map[string]int{}
	for _, c := range s.calls {
		classes[c.class]++
		if c.class == "read" {
			reads[c.tool]++
			continue
		}
		want := " exec.started:pending exec.outcome:success"
		if c.class == "approval" {
			if did := s.decided[c.op]; c.status != did {
				s.Errorf("%s %s: the agent was told %q, and what people did is %q", c.tool, c.op, c.status, did)
			}
			switch c.status {
			case "succeeded":
				want = " approval.requested:pending approval.voted:success approval.decided:success" + want
			case "rejected":
				want = " approval.requested:pending approval.voted:denied approval.decided:denied"
			case "expired":
				want = " approval.requested:pending approval.decided:denied"
			}
		}
		got := stories[c.op]
		if got == nil || !strings.HasSuffix(got.said, want) || got.tool != c.tool {
			s.Errorf("the log about %s, %s (%s), which was answered with %s: %+v", c.op, c.tool, c.class, c.status, got)
			continue
		}
		if reached := sent[c.op] > 0; c.tool != "delete_resource" && reached != (c.status == "succeeded") {
			s.Errorf("%s %s was answered with %s, and the API server had %d requests", c.tool, c.op, c.status, sent[c.op])
		}
		delete(stories, c.op)
	}
	if len(classes) != 3 {
		s.Errorf("not every kind of call was made: %v", classes)
	}
	// What is left is about reads, which are answered without their operation.
	for op, story := range stories {
		if strings.HasSuffix(story.said, " exec.outcome:success") && !strings.Contains(story.said, "exec.started") {
			reads[story.tool]--
		} else {
			s.Errorf("nobody was answered about %s: %+v", op, *story)
		}
	}
	for tool, n := range reads {
		if n != 0 {
			s.Errorf("%s: %d more answers than the log has", tool, n)
		}
	}
}

// closed looks whether anything was left open, and stops the server.
func (s *soak) closed() {
	s.Helper()
	asked, last := 0, ""
	if !s.wire.Await(time.Minute, func() bool {
		asked, last = 0, ""
		for i := range soakChannels {
			for _, m := range s.wire.Messages(soakChannel(i)) {
				if asked++; strings.Contains(m.Rendered(), "[Approve") {
					last = m.Rendered()
				}
			}
		}
		return last == ""
	}) {
		s.Errorf("this can still be approved:\n%s", last)
	}
	if asked != len(s.decided) {
		s.Errorf("%d questions, and %d that people looked at", asked, len(s.decided))
	}
	if err := s.server.Stop(); err != nil {
		s.Error(err)
	}
	store, err := storage.Open(filepath.Join(filepath.Dir(s.server.Config), "data", "countersign.db"), storage.Options{Messenger: true})
	if err != nil {
		s.Fatal(err)
	}
	defer store.Close()
	open, err := store.OpenOperations()
	if err != nil || len(open) > 0 {
		s.Errorf("%d operations were left open, %v", len(open), err)
	}
}

// report prints a table for people.
func (s *soak) report(elapsed time.Duration, footprints []footprint, records int, verified string) {
	s.Helper()
	count := map[string]int{}
	parts := map[string]*side{} // by class and third of the time
	for _, c := range slices.Concat(s.calls, s.straight) {
		count[c.class]++
		count[c.class+" "+c.status]++
		part := fmt.Sprint(c.class, min(int(3*c.at / *soakFor), 2))
		if parts[part] == nil {
			parts[part] = &side{}
		}
		parts[part].took = append(parts[part].took, c.took)
	}
	percentiles := func(part string) string {
		p := parts[part]
		if p == nil {
			return "none"
		}
		slices.Sort(p.took)
		return fmt.Sprintf("%.1f / %.1f / %.1f", p.percentile(50)/1000, p.percentile(95)/1000, p.percentile(99)/1000)
	}
	log, err := os.ReadFile(s.log)
	if err != nil {
		s.Fatal(err)
	}
	out := tabwriter.NewWriter(os.Stdout, 0, 0, 3, ' ', 0)
	fmt.Fprintf(out, "agents / nodes / pods\t%d / %d / %d\n", soakAgents, soakNodes, soakPods)
	fmt.Fprintf(out, "calls: reads / changes / with approval\t%d / %d / %d\n", count["read"], count["change"], count["approval"])
	fmt.Fprintf(out, "approved / rejected / expired\t%d / %d / %d\n", count["approval succeeded"], count["approval rejected"], count["approval expired"])
	fmt.Fprintf(out, "calls / seconds / calls a second\t%d / %.0f / %.1f\n", len(s.calls), elapsed.Seconds(), float64(len(s.calls))/elapsed.Seconds())
	fmt.Fprintf(out, "errors / errors and warnings in the server's log\t%d / %d\n", s.failed, len(trouble.FindAll(log, -1)))
	fmt.Fprintf(out, "clicks not acknowledged in 3 s\t%d\n", s.unheard)
	for _, class := range []string{"read", "change", "straight"} {
		fmt.Fprintf(out, "%s, p50 / p95 / p99 in ms: first third\t%s\n", class, percentiles(class+"0"))
		fmt.Fprintf(out, "%s, last third\t%s\n", class, percentiles(class+"2"))
	}
	for i, name := range footprintNames {
		fmt.Fprintf(out, "%s: start / middle / end\t%.0f / %.0f / %.0f\n", name, footprints[0][i], footprints[1][i], footprints[2][i])
	}
	fmt.Fprintf(out, "records\t%d\n", records)
	fmt.Fprintf(out, "verified, as it runs and as exported\t%s\n", verified)
	out.Flush()
	for _, line := range trouble.FindAll(log, 20) {
		fmt.Printf("%.300s\n", line)
	}
}

// trouble is a line in the server's log that somebody should read.
var trouble = regexp.MustCompile(`(?m)^.*"level":"(ERROR|WARN)".*$`)
