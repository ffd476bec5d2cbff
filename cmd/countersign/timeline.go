package main

import (
	"bufio"
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"strings"
	"time"

	kjson "sigs.k8s.io/json"

	"countersign/action"
	"countersign/approvals"
	"countersign/audit"
)

// pen writes a timeline: a time, a word, and what there is to say.
type pen struct {
	out  *bufio.Writer
	time string // of the step that begins with the next line
}

// margin is how far blocks are from the left; texts of differences have three spaces more.
const margin = 25

func (p *pen) line(label, format string, args ...any) {
	text := approvals.Visible(fmt.Sprintf(format, args...))
	fmt.Fprintf(p.out, "  %-12s  %-11s %s\n", p.time, label, text)
	p.time = ""
}

// block writes lines that can be seen as they are.
func (p *pen) block(text string) {
	for line := range strings.Lines(text) {
		p.out.WriteString(strings.Repeat(" ", margin) + strings.TrimRight(line, "\n") + "\n")
	}
}

func writeTimeline(w io.Writer, t *timeline) error {
	p := &pen{out: bufio.NewWriter(w)}
	if s := t.Session; s != nil {
		head := func(label, format string, args ...any) {
			fmt.Fprintf(p.out, "%-9s %s\n", label, approvals.Visible(fmt.Sprintf(format, args...)))
		}
		head("Session", "%s", s.Session)
		if s.Principal != nil {
			head("Who", "%s (%s)", s.Principal, s.Principal.Issuer)
		}
		if s.Shared {
			head("", "and others: several callers gave this name to a session")
		}
		if s.Source != nil {
			head("From", "%s", sourceText(s.Source))
		}
		end := "and is open"
		if s.End != "" {
			end = "until " + s.Last.UTC().Format(time.RFC3339) + ", " + s.End
		}
		head("Time", "%s %s", s.Start.UTC().Format(time.RFC3339), end)
		head("Calls", "%d, of which %d changed something and %d were refused", s.Calls, s.Changes, s.Denied)
	}
	day := ""
	for _, op := range t.Operations {
		first := &op.Records[0].r
		if d := first.Time.UTC().Format(time.DateOnly); d != day {
			day = d
			fmt.Fprintf(p.out, "\n%s\n", day)
		}
		if op.Op != "" {
			title := toolName(first)
			for _, s := range op.Records {
				if title == "" {
					title = toolName(&s.r)
				}
			}
			fmt.Fprintf(p.out, "\n%s  %s\n", approvals.Visible(title), approvals.Visible(op.Op))
		}
		if (t.Session == nil || t.Session.Shared) && first.Principal != nil {
			p.time = ""
			p.line("who", "%s (%s), session %s", first.Principal, first.Principal.Issuer, first.Session)
		}
		for _, s := range op.Records {
			p.time = s.r.Time.UTC().Format("15:04:05.000")
			p.step(s)
			if t.Session == nil && op.Op == "" { // asked for by its number: all of it
				p.payload("record", s.Record)
			}
		}
	}
	return p.out.Flush()
}

func sourceText(s *audit.Source) string {
	text := s.Transport
	if s.IP != "" {
		text += " from " + s.IP
	}
	if s.Agent != "" {
		text += fmt.Sprintf("; the client calls itself %q", s.Agent)
	}
	return text
}

// step writes one record.
func (p *pen) step(s *step) {
	r := &s.r
	switch r.Type {
	case audit.ToolIntent:
		p.asked(r)
	case audit.ToolPlanned:
		p.requests("planned", r)
	case audit.PolicyDecided:
		p.decided(r)
	case audit.ApprovalRequested:
		p.question(s)
	case audit.ApprovalVoted:
		p.vote(r)
	case audit.ApprovalDecided:
		p.closed(r)
	case audit.ExecStarted:
		if a := r.Approval; a != nil && a.Grant != "" {
			p.line("grant", "%s lets it run, given by %s", a.Grant, strings.Join(a.By, ", "))
		}
		p.requests("sends", r)
	case audit.ExecOutcome, audit.ExecUnknown, audit.ExecReconciled:
		p.ended(r)
	default:
		p.other(r)
	}
	p.failed(r)
	if i := r.Imported; i != nil {
		p.line("imported", "by %s at %s: the log could not take it in its time", i.By, i.Time.UTC().Format(time.RFC3339))
	}
	if s.PayloadError != "" {
		p.line("payload", "not shown: %s", s.PayloadError)
	}
	if r.Type != audit.ApprovalRequested || s.Unsealed != nil {
		p.payload("payload", s.Payload)
		p.payload("unmasked", s.Unsealed)
	}
}

// maxArguments bounds how much of arguments is shown, in bytes.
const maxArguments = 2000

// asked writes a call. Arguments and reason are the agent's own words.
func (p *pen) asked(r *audit.Record) {
	if r.Outcome != "" { // a call of its own, about this operation
		p.line("agent calls", "%s", toolName(r))
		return
	}
	var args map[string]any
	if r.Tool != nil {
		args = maps.Clone(r.Tool.Args)
	}
	reason, isText := args["reason"].(string)
	if isText {
		delete(args, "reason")
	}
	data, err := json.Marshal(args)
	if err != nil || args == nil {
		data = []byte("nothing")
	}
	text := string(data)
	if len(text) > maxArguments {
		text = strings.ToValidUTF8(text[:maxArguments], "") + fmt.Sprintf(" ... and %d bytes more; -o json has all", len(text)-maxArguments)
	}
	p.line("agent asks", "%s %s", toolName(r), text)
	if isText {
		p.line("agent says", "%q", reason)
	}
	p.requests("which is", r)
}

// requests writes the requests of a record.
func (p *pen) requests(label string, r *audit.Record) {
	for _, a := range r.Actions {
		text := a.String()
		if a.Patch != "" {
			text += " (" + a.Patch + ")"
		}
		text += ", cluster " + a.Cluster
		if a.AuditID != "" {
			text += ", Audit-ID " + a.AuditID
		}
		p.line(label, "%s", text)
		label = ""
	}
	if r.MoreActions > 0 {
		p.line(label, "and %d requests more", r.MoreActions)
	}
}

func (p *pen) decided(r *audit.Record) {
	if r.Policy == nil {
		p.other(r)
		return
	}
	if a := r.Approval; a != nil && a.Grant != "" {
		p.line("grant", "%s covers it", a.Grant)
	}
	p.line("policy", "%s%s", r.Policy.Decision, because(r.Policy.Rules, r.Policy.Reason))
	if len(r.Policy.Risks) > 0 {
		p.line("risks", "%s", strings.Join(r.Policy.Risks, ", "))
	}
	if s := r.Policy.Shadow; s != nil {
		p.line("in shadow", "%s%s", s.Decision, because(s.Rules, s.Reason))
	}
	if len(r.Actions) > 0 && r.Actions[0].AuditID != "" { // a read, which goes out at once; what is denied has none
		p.requests("sends", r)
	}
}

func because(rules []string, reason string) string {
	text := ""
	if len(rules) > 0 {
		text = " by " + strings.Join(rules, ", ")
	}
	if reason != "" {
		text += ": " + reason
	}
	return text
}

// question writes what approvers were asked, and what they were shown.
func (p *pen) question(s *step) {
	a := s.r.Approval
	if a == nil {
		p.other(&s.r)
		return
	}
	p.line("asks people", "%s, until %s", strings.Join(a.Needs, " and "), a.Expires.UTC().Format(time.RFC3339))
	if len(a.Channels) > 0 {
		p.line("", "in %s", strings.Join(a.Channels, ", "))
	}
	if a.Supersedes != "" {
		p.line("", "again, in the place of %s, which is stale", a.Supersedes)
	}
	var diffs [][]action.Change
	if s.Payload == nil {
		return // which is said, where it should be there
	}
	if err := kjson.UnmarshalCaseSensitivePreserveInts(s.Payload, &diffs); err != nil {
		p.line("payload", "it cannot be read: %v", err)
		return
	}
	for i, diff := range diffs {
		what := fmt.Sprintf("request %d", i+1)
		if i < len(s.r.Actions) {
			what = s.r.Actions[i].String()
		}
		p.line("shows", "%s", what)
		p.block(approvals.DiffText(diff))
	}
}

func (p *pen) vote(r *audit.Record) {
	a := r.Approval
	if a == nil {
		p.other(r)
		return
	}
	text := a.Vote + " by " + strings.Join(a.By, ", ")
	if a.Via != "" {
		text += ", " + a.Via
	}
	if len(a.Sets) > 0 {
		text += ", of " + strings.Join(a.Sets, ", ")
	}
	if a.Kind {
		text += ", for this kind of change"
	}
	if r.Outcome == audit.Denied {
		text += "; it did not count"
	}
	p.line("vote", "%s", text)
	if a.Reason != "" {
		p.line("", "%q", a.Reason)
	}
}

func (p *pen) closed(r *audit.Record) {
	a := r.Approval
	if a == nil {
		p.other(r)
		return
	}
	text := strings.ToLower(a.State)
	if len(a.By) > 0 {
		text += " by " + strings.Join(a.By, ", ")
	}
	if a.Lock != "" {
		text += ", lock " + a.Lock
	}
	if a.Reason != "" && a.State != string(approvals.Authorized) { // where it is why people were asked
		text += ": " + a.Reason
	}
	p.line("decided", "%s", text)
}

func (p *pen) ended(r *audit.Record) {
	word := strings.TrimPrefix(r.Type, "exec.")
	if word == "outcome" {
		word = r.Outcome
	}
	text := "after " + (time.Duration(r.DurationMS) * time.Millisecond).String()
	if e := r.Evidence; e != nil {
		text = e.Result + ": " + e.Detail
	} else if r.Type != audit.ExecOutcome {
		text = "it is not known what it did"
	}
	p.line(word, "%s", text)
	if r.Type != audit.ExecOutcome {
		return
	}
	for _, a := range r.Actions {
		code := "no answer on record"
		if a.Code != 0 {
			code = fmt.Sprintf("code %d", a.Code)
		}
		p.line("", "%s for %s", code, a)
	}
	if r.MoreActions > 0 {
		p.line("", "and %d more", r.MoreActions)
	}
}

// other writes a record that is of no call, or of a type that this version does not know.
func (p *pen) other(r *audit.Record) {
	text := ""
	switch {
	case r.Type == audit.SessionStarted && r.Source != nil:
		text = sourceText(r.Source)
	case r.End != nil:
		text = fmt.Sprintf("%s, after %d calls", r.End.Reason, r.End.Calls)
	case r.Approval != nil:
		text = strings.Trim(fmt.Sprintf("%s%s by %s %s", r.Approval.Grant, r.Approval.Lock, strings.Join(r.Approval.By, ", "), r.Approval.Reason), " ")
	case r.Policy != nil && r.Policy.Reason != "":
		text = r.Policy.Reason
	}
	if r.Outcome != "" && r.Outcome != audit.Success {
		text = strings.TrimSpace(r.Outcome + " " + text)
	}
	p.line(r.Type, "%s", text)
	p.requests("", r)
}

func (p *pen) failed(r *audit.Record) {
	if r.Error != nil {
		p.line("error", "%s: %s", r.Error.Type, r.Error.Message)
	}
}

// payload writes one that is asked for.
func (p *pen) payload(label string, payload json.RawMessage) {
	if payload == nil {
		return
	}
	p.line(label, "")
	var pretty bytes.Buffer
	if json.Indent(&pretty, payload, "", "  ") != nil {
		return
	}
	var lines strings.Builder
	for line := range strings.Lines(pretty.String()) {
		lines.WriteString(approvals.Visible(strings.TrimSuffix(line, "\n")) + "\n")
	}
	p.block(lines.String())
}
