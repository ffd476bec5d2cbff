package e2e

import (
	"bytes"
	"cmp"
	"context"
	"encoding/binary"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"maps"
	"math/rand/v2"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"countersign/admin"
	"countersign/approvals"
	"countersign/e2e/rig"
)

var (
	chaosKills = flag.Int("chaos", 0, "run TestChaos, and kill the server so many times")
	chaosSeed  = flag.Uint64("chaos.seed", 0, "what TestChaos draws its faults and calls from, to repeat them; 0 is a new one")
	chaosTo    = flag.String("chaos.to", "", "file for the counts of TestChaos; beside it, as .log and .jsonl, the server's log and the audit log")
)

// What the agents of TestChaos may do. Where the attributes of a request decide, nothing
// is looked at before it; what people are asked about is previewed, and tied to the
// object as it was seen.
const chaosRules = `
  rules:
  - {name: reads, effect: allow, match: {verbs: [get, list]}}
  - {name: plain, effect: allow, match: {tools: [patch_resource], names: ["plain-*", "list-*"]}}
  - {name: pairs, effect: allow, match: {tools: [apply_manifest]}}
  - name: asked
    effect: require_approval
    match: {tools: [patch_resource, set_annotations], names: ["asked-*"]}
    approval: {approvers: [operators], expires: 15m}
`

// chaosAgents is how many agents work at once.
const chaosAgents = 12

// chaos is one server under load, to which everything happens.
type chaos struct {
	*slackStage
	issuer *rig.Issuer
	clock  string // the file that its clock is stepped by
	admin  *admin.Client
	quit   chan struct{} // closed when the agents should stop

	mu     sync.Mutex
	pid    int // of the server, 0 while there is none
	deeds  []*deed
	votes  []string // operations of the votes that were taken
	events map[string]int
}

// deed is one call, and what its agent was told last.
type deed struct {
	token  string // stands in this call alone, and in the object when it is done
	tool   string
	op     string
	answer string // the status, or why there is none
}

// token is what marks a call in the log and in the cluster.
var marked = regexp.MustCompile(`\bt\d+-\d+x\b`)

// The server is killed at random moments while agents work and approvers answer, and
// meanwhile everything around it fails too. What was acknowledged is on record, nothing
// ran twice, and everything that was started has an end.
//
// The times of the faults and the calls are drawn from a seed; how they fall together is
// up to the machine.
func TestChaos(t *testing.T) {
	if *chaosKills == 0 {
		t.Skip("give -chaos a number, or use make chaos")
	}
	if runtime.GOOS != "linux" {
		t.Skip("only Linux limits the files of a process that runs")
	}
	seed := cmp.Or(*chaosSeed, rand.Uint64()>>32)
	c := newChaos(t)
	var work, answers sync.WaitGroup
	for n := range chaosAgents {
		rng := rand.New(rand.NewPCG(seed, uint64(n+1)))
		token := c.token(n)
		work.Go(func() { c.agent(n, token, rng) })
	}
	done := make(chan struct{})
	answers.Go(func() { c.clicks(done) })
	answers.Go(func() { c.ballots(done, rand.New(rand.NewPCG(seed, 0))) })

	began := time.Now()
	c.start()
	c.server.Kill()
	c.lives(*chaosKills, rand.New(rand.NewPCG(seed, 1<<32)))
	c.start()               // everything is well again
	time.Sleep(time.Second) // some calls that nothing happens to
	close(c.quit)
	work.Wait()
	took := time.Since(began)
	c.settled()
	close(done)
	answers.Wait()
	report := c.check()
	report = fmt.Sprintf("make chaos, seed %d, %s of faults, then everything well until nothing was open\n\n%s", seed, took.Round(time.Second), report)
	fmt.Print(report)
	if *chaosTo != "" {
		if err := os.WriteFile(*chaosTo, []byte(report), 0o600); err != nil {
			t.Error(err)
		}
	}
}

func newChaos(t *testing.T) *chaos {
	binary, err := steppedServer(t.TempDir())
	if err != nil {
		t.Fatal(err)
	}
	issuer, err := rig.StartIssuer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { issuer.Close() })
	c := &chaos{slackStage: prepareSlackStage(t, chaosRules, "{wait: 1s, maxPending: 100}"), issuer: issuer, quit: make(chan struct{}), events: map[string]int{}}
	if err := rig.Replace(c.server.Config, "issuers: [", fmt.Sprintf("issuers: [{url: %q}, ", issuer.URL)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Dir(c.server.Config)
	c.clock = filepath.Join(dir, "clock")
	c.step(0)
	log, err := os.Create(cmp.Or(strings.TrimSuffix(*chaosTo, ".txt"), filepath.Join(dir, "server")) + ".log")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { log.Close() })
	c.server.Binary, c.server.Log = binary, log
	c.server.Env = []string{"COUNTERSIGN_CLOCK=" + c.clock}
	c.admin = admin.NewClient(filepath.Join(dir, "data", "admin.sock"))
	var objects strings.Builder
	for _, name := range []string{"plain", "list", "asked", "asked-list"} {
		for n := range chaosAgents {
			kind := `{apiVersion: v1, kind: ConfigMap, metadata: {name: %s-%d, namespace: %s}, data: {first: a}}`
			if strings.HasSuffix(name, "list") {
				kind = `{apiVersion: networking.k8s.io/v1, kind: Ingress, metadata: {name: %s-%d, namespace: %s}, spec: {rules: [{host: first.example.com}]}}`
			}
			fmt.Fprintf(&objects, "---\n"+kind+"\n", name, n, c.namespace)
		}
	}
	if _, err := world.cluster.Run(c.ctx, objects.String(), "create", "-f", "-"); err != nil {
		t.Fatal(err)
	}
	return c
}

// steppedServer builds a server whose wall clock can be stepped while it runs: package
// time is compiled with testdata/clock/step.go in it.
func steppedServer(dir string) (string, error) {
	root, err := exec.Command("go", "env", "GOROOT").Output()
	if err != nil {
		return "", err
	}
	in := filepath.Join(strings.TrimSpace(string(root)), "src", "time")
	text, err := os.ReadFile(filepath.Join(in, "time.go"))
	if err != nil {
		return "", err
	}
	const now = "sec, nsec, mono := runtimeNow()"
	if n := bytes.Count(text, []byte(now)); n != 1 {
		return "", fmt.Errorf("%q stands %d times in this Go's time.go, and should once", now, n)
	}
	step, err := filepath.Abs("testdata/clock/step.go")
	if err != nil {
		return "", err
	}
	stepped, overlay := filepath.Join(dir, "time.go"), filepath.Join(dir, "overlay.json")
	replaced, err := json.Marshal(map[string]any{"Replace": map[string]string{filepath.Join(in, "time.go"): stepped, filepath.Join(in, "step.go"): step}})
	if err != nil {
		return "", err
	}
	err = rig.WriteFiles(dir, map[string]string{
		"time.go": strings.Replace(string(text), now, "sec, nsec, mono := steppedNow()", 1), "overlay.json": string(replaced),
	})
	if err != nil {
		return "", err
	}
	return rig.BuildServer(context.Background(), dir, "-overlay", overlay)
}

// step makes the server's clock be off.
func (c *chaos) step(by time.Duration) {
	file, err := os.OpenFile(c.clock, os.O_RDWR|os.O_CREATE, 0o600)
	if err == nil {
		defer file.Close()
		_, err = file.WriteAt(binary.NativeEndian.AppendUint64(nil, uint64(by/time.Second)), 0)
	}
	if err != nil {
		c.Error(err)
	}
}

func (c *chaos) count(event string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.events[event]++
}

// misfortune is a fault: begin makes it, and returns what ends it.
type misfortune struct {
	name  string
	begin func(rng *rand.Rand) (end func())
}

func (c *chaos) misfortunes() []misfortune {
	between := func(wrap func(next http.Handler) http.Handler) func() {
		c.proxy.Between(wrap)
		return func() { c.proxy.Between(nil) }
	}
	return []misfortune{
		{"API server killed and restarted", func(*rand.Rand) func() {
			ctx, cancel := context.WithTimeout(context.Background(), 2*time.Minute)
			defer cancel()
			if err := world.cluster.RestartAPIServer(ctx); err != nil {
				c.Error(err)
			}
			return func() {}
		}},
		{"API server throttles (429)", func(*rand.Rand) func() {
			return between(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					if rand.IntN(3) == 0 {
						next.ServeHTTP(w, r)
						return
					}
					c.count("answers 429")
					w.Header().Set("Retry-After", "1")
					w.Header().Set("Content-Type", "application/json")
					w.WriteHeader(http.StatusTooManyRequests)
					io.WriteString(w, `{"kind":"Status","apiVersion":"v1","status":"Failure","message":"too many requests, please try again later","reason":"TooManyRequests","code":429}`)
				})
			})
		}},
		{"API server slow", func(rng *rand.Rand) func() {
			most := 100 + rng.IntN(1900)
			return between(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					c.count("answers slow")
					body, err := io.ReadAll(r.Body)
					if err != nil {
						return
					}
					r.Body = io.NopCloser(bytes.NewReader(body))
					select { // who asks may be dead before it arrives
					case <-time.After(time.Duration(rand.IntN(most)) * time.Millisecond):
					case <-r.Context().Done():
						return
					}
					next.ServeHTTP(w, r)
				})
			})
		}},
		{"connections and answers cut", func(*rand.Rand) func() {
			return between(func(next http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					switch rand.IntN(4) {
					case 0: // the request is lost
						c.count("requests lost")
					case 1: // its answer
						c.count("answers lost")
						next.ServeHTTP(httptest.NewRecorder(), r)
					case 2: // half of it
						c.count("answers cut")
						whole := httptest.NewRecorder()
						next.ServeHTTP(whole, r)
						maps.Copy(w.Header(), whole.Header())
						w.Header().Set("Content-Length", strconv.Itoa(whole.Body.Len()))
						w.WriteHeader(whole.Code)
						w.Write(whole.Body.Bytes()[:whole.Body.Len()/2])
					default:
						next.ServeHTTP(w, r)
						return
					}
					panic(http.ErrAbortHandler)
				})
			})
		}},
		{"disk full and freed", func(*rand.Rand) func() {
			info, err := os.Stat(filepath.Join(filepath.Dir(c.server.Config), "data", "countersign.db"))
			if err != nil {
				c.Error(err)
				return func() {}
			}
			c.limit(uint64(info.Size()) / 2)
			return func() { c.limit(unix.RLIM_INFINITY) } // also what began after a kill
		}},
		{"Slack down", func(*rand.Rand) func() {
			c.wire.Down(true)
			return func() { c.wire.Down(false) }
		}},
		{"clock stepped, and back", func(rng *rand.Rand) func() {
			by := time.Duration(rng.Int64N(int64(2 * time.Hour)))
			if rng.IntN(2) == 0 {
				by = -by
			}
			c.step(by)
			return func() { c.step(0) }
		}},
	}
}

// limit limits the files of the server that runs, where one does.
func (c *chaos) limit(size uint64) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.pid == 0 {
		return
	}
	if err := setFileLimit(c.pid, size); err != nil {
		c.Error("limiting the size of the server's files: ", err)
	}
}

// lives lets the server live so many times, each until it is killed at random, one in
// five while it starts. In each but some one thing goes wrong, for a while that may
// outlast it.
func (c *chaos) lives(n int, rng *rand.Rand) {
	all := c.misfortunes()
	var order []int
	var troubles sync.WaitGroup
	busy := make([]sync.Mutex, len(all))
	for range n {
		if len(order) == 0 {
			order = rng.Perm(len(all) + 1) // and one time none
		}
		which := order[0]
		order = order[1:]
		lives := time.Duration(300+rng.IntN(1500)) * time.Millisecond
		after, lasts := time.Duration(rng.Int64N(int64(lives))), time.Duration(200+rng.IntN(1500))*time.Millisecond
		starting, patience := rng.IntN(5) == 0, time.Duration(30+rng.IntN(400))*time.Millisecond
		own := rand.New(rand.NewPCG(rng.Uint64(), 0))
		if which < len(all) {
			troubles.Go(func() {
				time.Sleep(after)
				busy[which].Lock()
				defer busy[which].Unlock()
				c.count(all[which].name)
				end := all[which].begin(own)
				time.Sleep(lasts)
				end()
			})
		}
		if starting {
			ctx, cancel := context.WithTimeout(c.ctx, patience)
			err := c.server.Start(ctx)
			cancel()
			if err != nil && ctx.Err() == nil {
				c.Fatal(err)
			}
			if err != nil {
				c.count("kills while starting")
				continue
			}
		} else if err := c.server.Start(c.ctx); err != nil {
			c.Fatal(err)
		}
		c.mu.Lock()
		c.pid = c.server.PID()
		c.mu.Unlock()
		select {
		case <-time.After(lives):
		case <-c.server.Exited():
			c.Fatal("the server ended by itself: see its log")
		}
		c.mu.Lock()
		c.pid = 0
		c.mu.Unlock()
		c.server.Kill()
		c.count("kills while serving")
	}
	troubles.Wait()
}

// token is an agent's. Every second one's is good whatever the clock says.
func (c *chaos) token(n int) string {
	claims := map[string]any{"sub": fmt.Sprint("agent-", n), "aud": audience}
	if n%2 == 0 {
		claims["iat"], claims["exp"] = time.Now().Add(-24*time.Hour).Unix(), time.Now().Add(24*time.Hour).Unix()
	} else {
		claims["exp"] = time.Now().Add(time.Hour).Unix()
	}
	token, err := c.issuer.Token(claims)
	if err != nil {
		c.Fatal(err)
	}
	return token
}

// agent calls until it is told to stop.
func (c *chaos) agent(n int, token string, rng *rand.Rand) {
	agent := &rig.Agent{URL: c.server.URL, Token: token, Client: &http.Client{Transport: &http.Transport{}, Timeout: time.Minute}}
	defer agent.Client.CloseIdleConnections()
	for i := 0; ; i++ {
		select {
		case <-c.quit:
			return
		case <-time.After(time.Duration(20+rng.IntN(80)) * time.Millisecond):
		}
		if agent.Session == "" && agent.Connect(c.ctx) != nil {
			continue
		}
		d := &deed{token: fmt.Sprintf("t%d-%dx", n, i)}
		tool, args := c.call(d, n, rng.IntN(10))
		d.tool = tool
		if !c.told(d, agent, tool, args) {
			continue
		}
		c.mu.Lock()
		c.deeds = append(c.deeds, d)
		c.mu.Unlock()
		for range 3 { // what waits for people, it asks about a few times
			if d.answer != "pending_approval" {
				break
			}
			c.told(d, agent, "wait_for_operation", fmt.Sprintf(`{"op":%q}`, d.op))
		}
	}
}

// call is one of an agent's calls. The reason stands in the log, where a patch itself does not.
func (c *chaos) call(d *deed, n, which int) (tool, args string) {
	common := fmt.Sprintf(`"reason":%q,"namespace":%q`, d.token, c.namespace)
	appended := func(name string) string {
		return fmt.Sprintf(`{%s,"kind":"ingress","name":"%s-%d","type":"json","patch":"[{op: add, path: /spec/rules/-, value: {host: %s.example.com}}]"}`, common, name, n, d.token)
	}
	switch which {
	case 0, 1:
		return "patch_resource", fmt.Sprintf(`{%s,"kind":"configmap","name":"plain-%d","patch":"data: {%s: a}"}`, common, n, d.token)
	case 2, 3:
		return "patch_resource", appended("list")
	case 4: // two agents share one
		return "set_annotations", fmt.Sprintf(`{%s,"kind":"configmap","name":"asked-%d","set":{%q:"a"}}`, common, n/2, d.token)
	case 5:
		return "patch_resource", appended("asked-list")
	case 6:
		return "apply_manifest", fmt.Sprintf(`{%s,"manifest":"{apiVersion: v1, kind: ConfigMap, metadata: {name: %[2]s.a}}\n---\n{apiVersion: v1, kind: ConfigMap, metadata: {name: %[2]s.b}}"}`, common, d.token)
	}
	return "list_resources", fmt.Sprintf(`{"kind":"configmaps","namespace":%q,"label_selector":"chaos!=%s"}`, c.namespace, d.token)
}

// told calls and notes what the agent is told, unless there was nobody to call.
func (c *chaos) told(d *deed, agent *rig.Agent, tool, args string) bool {
	answer, err := agent.Call(c.ctx, tool, args)
	said := answer.Structured
	refused := strings.Contains(said.Reason, full) || strings.Contains(said.Reason, none)
	var operation *net.OpError
	switch {
	case errors.As(err, &operation) && operation.Op == "dial":
		return false
	case d.op != "" && (err != nil || refused): // it asked about a question, which is as it was
	case err != nil && strings.HasPrefix(err.Error(), "HTTP "):
		d.answer, _, _ = strings.Cut(err.Error(), ":")
	case err != nil:
		d.answer = "none, connection lost"
	case refused:
		d.answer = "refused for lack of a log"
	case said.Status == "" && !answer.IsError:
		d.answer = "read"
	default:
		d.op, d.answer = said.Op, said.Status
	}
	return true
}

// clicks is bea, who approves in Slack what she is shown.
func (c *chaos) clicks(done <-chan struct{}) {
	for {
		select {
		case <-done:
			return
		case <-time.After(100 * time.Millisecond):
		}
		for _, m := range c.wire.Messages(slackChannel) {
			// Two thirds; the rest is left to the socket.
			if !strings.Contains(m.Rendered(), "[Approve") || c.wire.Connections() == 0 || len(m.TS) > 0 && m.TS[len(m.TS)-1]%3 == 0 {
				continue
			}
			if d, err := c.wire.Click(slackPeople["bea"].ID, slackChannel, m.TS, "approve"); err == nil && d.Acked {
				c.count("clicks in Slack")
			}
		}
	}
}

// ballots is somebody who votes over the admin socket on what is open for a while, and
// now and then says no.
func (c *chaos) ballots(done <-chan struct{}, rng *rand.Rand) {
	seen := map[string]int{}
	for {
		select {
		case <-done:
			return
		case <-time.After(200 * time.Millisecond):
		}
		ops, err := c.admin.Operations(c.ctx)
		if err != nil {
			continue
		}
		for _, op := range ops {
			if op.State != approvals.PendingApproval {
				continue
			}
			if seen[op.ID]++; seen[op.ID] < 3 {
				continue
			}
			ballot := approvals.Ballot{Approve: rng.IntN(8) > 0, Reason: "not now"}
			if _, err := c.admin.Vote(c.ctx, op.ID, ballot); err == nil {
				c.count("votes over the socket")
				c.mu.Lock()
				c.votes = append(c.votes, op.ID)
				c.mu.Unlock()
			}
		}
	}
}

// settled waits until nothing is open.
func (c *chaos) settled() {
	var last string
	for deadline := time.Now().Add(5 * time.Minute); ; time.Sleep(200 * time.Millisecond) {
		ops, err := c.admin.Operations(c.ctx)
		if err == nil && len(ops) == 0 {
			return
		}
		last = fmt.Sprint(err)
		for _, op := range ops {
			last += fmt.Sprintf("\n%s %s %s", op.ID, op.State, op.Reason)
		}
		if time.Now().After(deadline) {
			c.Fatalf("open after five minutes without a fault: %.2000s", last)
		}
	}
}
