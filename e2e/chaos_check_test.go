package e2e

import (
	"bufio"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"text/tabwriter"

	"countersign/e2e/rig"
)

// life is what the log has of one operation.
type life struct {
	token, supersedes string
	types             map[string]int
	outcome           string // of the last exec.outcome
	evidence          string
	ids               map[string]bool // of the requests that it was about to send
	objects           int             // that they change
}

// agrees reports whether that is what the log says that an agent was told.
func (l *life) agrees(answer string) bool {
	switch answer {
	case "succeeded":
		return l.outcome == "success" || l.outcome == "" && l.evidence == "applied"
	case "failed":
		return len(l.ids) == 0 || l.outcome == "failure"
	case "partial":
		return l.outcome == "failure" || l.outcome == "partial"
	case "unknown":
		return len(l.ids) > 0
	case "pending_approval":
		return l.types["approval.requested"] == 1
	case "denied", "rejected", "expired", "stale", "cancelled":
		return len(l.ids) == 0
	}
	return false
}

// read sums up the records of each operation, and finds the operations of each call: what
// was asked again is another one.
func read(records []rig.Record) (lives map[string]*life, byToken map[string][]string) {
	lives, byToken = map[string]*life{}, map[string][]string{}
	for _, r := range records {
		if r.Op == "" {
			continue
		}
		l := lives[r.Op]
		if l == nil {
			l = &life{types: map[string]int{}, ids: map[string]bool{}}
			lives[r.Op] = l
		}
		l.types[r.Type]++
		switch r.Type {
		case "tool.intent":
			if token := marked.FindString(r.Raw); token != "" && l.token == "" {
				l.token = token
			}
		case "approval.requested":
			l.supersedes = between(r.Raw, `"supersedes":"`, `"`)
		case "exec.started":
			l.objects = len(r.Actions)
			for _, a := range r.Actions {
				l.ids[a.AuditID] = a.AuditID != ""
			}
		case "exec.outcome":
			l.outcome = r.Outcome
		case "exec.reconciled":
			l.evidence = r.Evidence.Result
		}
	}
	for op, l := range lives {
		for at := l; l.token == "" && at != nil; at = lives[at.supersedes] {
			l.token = at.token // asked again
		}
		byToken[l.token] = append(byToken[l.token], op)
	}
	return lives, byToken
}

// check compares what agents were told, the log, and the cluster, and returns the counts.
func (c *chaos) check() string {
	emergency := filepath.Join(filepath.Dir(c.server.Config), "data", "emergency.jsonl")
	imported := "none"
	if _, err := os.Stat(emergency); err == nil {
		text, err := c.server.Run(c.ctx, "audit", "import", emergency)
		if err != nil {
			c.Error(err)
		}
		imported, _, _ = strings.Cut(text, "\n")
	}
	verified, records := c.verify()
	lives, byToken := read(records)

	// 1. What was acknowledged is in the log, as it was told.
	done := c.effects()
	answers := map[string]int{}
	acknowledged := 0
	for _, d := range c.deeds {
		answers[d.answer]++
		if d.answer == "read" {
			acknowledged++
			if ops := byToken[d.token]; len(ops) != 1 || lives[ops[0]].types["policy.decided"] != 1 {
				c.Errorf("the read %s was answered and is not on record", d.token)
			}
			continue
		}
		if d.op == "" {
			if d.answer == "refused for lack of a log" && done[d.token] > 0 {
				c.Errorf("%s was refused for lack of a log, and done", d.token)
			}
			continue
		}
		acknowledged++
		l := lives[d.op]
		if l == nil {
			c.Errorf("%s (%s) was told %s, and is not in the log", d.op, d.token, d.answer)
			continue
		}
		if !l.agrees(d.answer) {
			c.Errorf("%s (%s) was told %s; the log has %v, outcome %q, evidence %q", d.op, d.token, d.answer, l.types, l.outcome, l.evidence)
		}
	}
	for _, op := range c.votes {
		if l := lives[op]; l == nil || l.types["approval.voted"] == 0 {
			c.Errorf("a vote on %s was taken, and is not in the log", op)
		}
	}

	// 2. Nothing ran twice, by the cluster's audit log and by what is in the cluster.
	writes, torn := c.writes()
	twice, unannounced := 0, 0
	succeeded := map[string]int{} // by operation and object
	for id, events := range writes {
		op, _, _ := strings.Cut(id, ".")
		if l := lives[op]; l == nil || !l.ids[id] {
			unannounced++
			c.Errorf("the cluster logged the request %s, which is not on record as started", id)
		}
		for _, e := range events {
			if succeeded[op+" "+e]++; succeeded[op+" "+e] == 2 {
				twice++
				c.Errorf("%s changed %s twice", op, e)
			}
		}
	}
	// 3. What was started has an end, and the end is what the cluster shows.
	started, ended, reconciled, evidence, unlogged, overtaken := 0, 0, 0, map[string]int{}, 0, 0
	for token, ops := range byToken {
		least, most, early := 0, 0, 0 // changes that there should be
		for _, op := range ops {
			l := lives[op]
			if len(l.ids) == 0 {
				continue
			}
			started++
			if l.outcome == "success" && l.evidence == "not_applied" || l.outcome == "failure" && l.evidence == "applied" && l.objects == 1 {
				c.Errorf("%s was found %s, and the outcome that was imported is a %s", op, l.evidence, l.outcome)
			}
			if l.types["exec.outcome"] > 1 || l.types["exec.reconciled"] > 1 {
				c.Errorf("%s ended several times: %v", op, l.types)
			}
			if l.types["exec.outcome"] > 0 {
				ended++
			}
			if l.types["exec.reconciled"] > 0 {
				reconciled++
				evidence[l.evidence]++
			}
			most += l.objects
			switch {
			case l.outcome == "success", l.outcome == "" && l.evidence == "applied":
				least += l.objects
			case l.outcome == "" && l.evidence == "undeterminable", l.outcome == "failure" && l.objects > 1: // the first of two may have been done
			case l.outcome == "" && l.evidence == "":
				c.Errorf("%s was started and has no end: %v", op, l.types)
			default:
				// A request that was on its way all the while can arrive after the look.
				if most -= l.objects; l.evidence == "not_applied" {
					early += l.objects
				}
			}
		}
		if token == "" {
			continue
		}
		if n := done[token]; n > most && n <= most+early {
			overtaken++
		} else if n < least || n > most {
			c.Errorf("%s was done %d times; the log says %d to %d: %v", token, n, least, most, ops)
		}
		logged := 0
		for _, op := range ops {
			for what, n := range succeeded {
				if strings.HasPrefix(what, op) {
					logged += n
				}
			}
		}
		unlogged += max(0, done[token]-logged)
	}
	for token, n := range done {
		if len(byToken[token]) == 0 {
			c.Errorf("%s was done %d times and is not in the log", token, n)
		}
	}
	messages := map[string]int{}
	for _, m := range c.wire.Messages(slackChannel) {
		op := operationID.FindString(string(m.Metadata))
		if messages[op]++; messages[op] == 2 {
			c.Errorf("Slack has two messages about %s", op)
		}
	}
	if acknowledged == 0 || started == 0 || reconciled == 0 || len(writes) == 0 {
		c.Error("nothing happened that could go wrong")
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if unlogged > 0 && c.events["API server killed and restarted"] == 0 {
		c.Errorf("%d changes are in the cluster and not in its audit log, and the API server was not killed", unlogged)
	}

	var out strings.Builder
	table := tabwriter.NewWriter(&out, 0, 0, 2, ' ', 0)
	row := func(what string, n any) { fmt.Fprintf(table, "%s\t%v\n", what, n) }
	rows := func(title string, counts map[string]int) {
		for _, what := range slices.Sorted(maps.Keys(counts)) {
			row(title+what, counts[what])
		}
	}
	rows("", c.events)
	row("calls", len(c.deeds))
	rows("  answered: ", answers)
	row("operations acknowledged, all in the log", acknowledged)
	row("operations started", started)
	row("  with an outcome", ended)
	row("  found out afterwards", reconciled)
	rows("    ", evidence)
	row("    found not applied, and arrived later", overtaken)
	row("writes in the cluster's audit log", len(writes))
	row("  whose answer it had no time to log", unlogged)
	row("  lines of it that were torn", torn)
	row("  not announced in ours", unannounced)
	row("operations that changed something twice", twice)
	row("questions in Slack", len(messages))
	row("emergency file", imported)
	row("records", len(records))
	row("verified", verified)
	table.Flush()
	return out.String()
}

// verify verifies the log of the server that runs, an export, and the file.
func (c *chaos) verify() (said string, records []rig.Record) {
	ok := 0
	verify := func(args ...string) {
		if text, err := c.server.Run(c.ctx, append([]string{"audit", "verify"}, args...)...); err != nil {
			c.Errorf("%s%v", text, err)
		} else {
			ok++
		}
	}
	verify()
	dir := filepath.Dir(c.server.Config)
	checkpoint, export := filepath.Join(dir, "checkpoint"), filepath.Join(dir, "audit.jsonl")
	text, err := c.server.Run(c.ctx, "audit", "export", "--checkpoint", checkpoint)
	if err == nil {
		err = os.WriteFile(export, []byte(text), 0o600)
	}
	if err == nil && *chaosTo != "" {
		err = os.WriteFile(strings.TrimSuffix(*chaosTo, ".txt")+".jsonl", []byte(text), 0o600)
	}
	if err != nil {
		c.Fatal(err)
	}
	verify(export, "--checkpoint", checkpoint, "--key", filepath.Join(dir, "data", "audit.pub"))
	if err := c.server.Stop(); err != nil {
		c.Error(err)
	}
	verify()
	for line := range strings.Lines(text) {
		r := rig.Record{Raw: strings.TrimSuffix(line, "\n")}
		if err := json.Unmarshal([]byte(line), &r); err != nil {
			c.Fatal(err)
		}
		records = append(records, r)
	}
	return fmt.Sprintf("%d of 3 (the running server, an export, the file)", ok), records
}

// effects counts how often each token stands in the cluster's objects. A rule that is
// added to an Ingress twice is there twice.
func (c *chaos) effects() map[string]int {
	c.Helper()
	text, err := world.cluster.Run(c.ctx, "", "get", "configmaps,ingresses", "-n", c.namespace, "-o", "json")
	if err != nil {
		c.Fatal(err)
	}
	var list struct {
		Items []struct {
			Metadata struct {
				Name        string
				Annotations map[string]string
			}
			Data map[string]string
			Spec struct{ Rules []struct{ Host string } }
		}
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		c.Fatal(err)
	}
	done := map[string]int{}
	mark := func(text string) {
		if token := marked.FindString(text); token != "" {
			done[token]++
		}
	}
	for _, o := range list.Items {
		mark(o.Metadata.Name)
		for name := range o.Metadata.Annotations {
			mark(name)
		}
		for name := range o.Data {
			mark(name)
		}
		for _, rule := range o.Spec.Rules {
			mark(rule.Host)
		}
	}
	return done
}

// writes are the changes by the server that succeeded, as the API server's own audit log
// has them: for each Audit-ID the objects. A line can be torn where it was killed.
func (c *chaos) writes() (writes map[string][]string, torn int) {
	f, err := os.Open(world.cluster.AuditLog)
	if err != nil {
		c.Fatal(err)
	}
	defer f.Close()
	writes = map[string][]string{}
	lines := bufio.NewScanner(f)
	lines.Buffer(nil, 16<<20)
	for lines.Scan() {
		var event struct {
			AuditID, Verb, RequestURI, Stage string
			User                             struct{ Username string }
			ObjectRef                        struct{ Resource, Namespace, Name string }
			ResponseStatus                   struct{ Code int }
		}
		if json.Unmarshal(lines.Bytes(), &event) != nil {
			torn++
			continue
		}
		if event.Stage != "ResponseComplete" || event.User.Username != "system:serviceaccount:agents:countersign" || event.ObjectRef.Namespace != c.namespace ||
			event.ResponseStatus.Code >= 300 || strings.Contains(event.RequestURI, "dryRun") || event.Verb == "get" || event.Verb == "list" {
			continue
		}
		writes[event.AuditID] = append(writes[event.AuditID], event.ObjectRef.Resource+" "+event.ObjectRef.Name)
	}
	if err := lines.Err(); err != nil {
		c.Fatal(err)
	}
	return writes, torn
}
