package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"go.yaml.in/yaml/v3"

	"countersign/approvals/slack/slacktest"
	"countersign/e2e/rig"
)

// chat is where people are asked: a double of Slack within this process, where
// Bea decides, or the real one, where whoever reads the demo does.
type chat struct {
	wire    *slacktest.Server // nil with a real Slack
	channel string
	config  string // the sections approvers, people and slack of the configuration
}

const (
	fakeChannel = "CAPPROVE1"
	bea         = "UBEA00001"
)

// newChat starts the double for "fake"; anything else is a file with these
// sections of the configuration.
func newChat(source, dir string) (*chat, error) {
	if source != "fake" {
		return readChat(source)
	}
	wire, err := slacktest.Start("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	wire.AddChannel(slacktest.Channel{ID: fakeChannel, Name: "approvals"})
	wire.AddUser(slacktest.User{ID: bea, Name: "bea", RealName: "Bea Example"})
	wire.SetGroup("SOPERATE1", bea)
	c := &chat{wire: wire, channel: fakeChannel, config: fmt.Sprintf(`
approvers: {operators: {local: ["*"], slackGroups: [SOPERATE1]}}
slack: {botTokenFile: slack-bot, appTokenFile: slack-app, channel: %s, apiURL: %q}
`, fakeChannel, wire.URL)}
	return c, rig.WriteFiles(dir, map[string]string{"slack-bot": wire.BotToken, "slack-app": wire.AppToken})
}

// readChat reads the sections and makes their paths absolute, which are from the
// folder of the file.
func readChat(path string) (*chat, error) {
	data, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("reading what SLACK names, which is fake or a file: %w", err)
	}
	var sections struct {
		Approvers map[string]map[string][]string `yaml:"approvers"`
		People    []map[string]any               `yaml:"people,omitempty"`
		Slack     map[string]any                 `yaml:"slack"`
	}
	if err := yaml.Unmarshal(data, &sections); err != nil {
		return nil, fmt.Errorf("reading %s: %w", path, err)
	}
	operators := sections.Approvers["operators"]
	if sections.Slack == nil || len(operators["slack"])+len(operators["slackGroups"])+len(operators["emails"]) == 0 {
		return nil, fmt.Errorf(`%s needs the section slack, and who may decide, such as approvers: {operators: {slack: [U012AB3CD]}}; see docs/slack.md`, path)
	}
	dir, err := filepath.Abs(filepath.Dir(path))
	if err != nil {
		return nil, err
	}
	for key, value := range sections.Slack {
		if file, ok := value.(string); ok && strings.HasSuffix(key, "File") && !filepath.IsAbs(file) {
			sections.Slack[key] = filepath.Join(dir, file)
		}
	}
	channel, _ := sections.Slack["channel"].(string)
	config, err := yaml.Marshal(sections)
	return &chat{channel: channel, config: "\n" + string(config)}, err
}

func (c *chat) close() {
	if c != nil && c.wire != nil {
		c.wire.Close()
	}
}

// play goes on from a change that waits for a person.
func (c *chat) play(ctx context.Context, d *demo, op string) error {
	d.step("Slack shows the question; an operator reads all of it and approves")
	err := c.decide(d, op, "open Review, read it, and click Approve at its end", func(m slacktest.Message) error {
		if err := c.click(d, m, "review", "Review"); err != nil {
			return err
		}
		return c.submit(d, "Approve", "1.1 is tested")
	})
	if err != nil {
		return err
	}
	if err := d.rolledOut(ctx, op); err != nil {
		return err
	}

	d.step("An operator approves a kind of change for a while")
	pending, err := d.call(ctx, "scale_deployment", `{"namespace":"shop","name":"web","replicas":20,"reason":"the sale begins"}`, "pending_approval")
	if err != nil {
		return err
	}
	err = c.decide(d, pending.Structured.Op, "click Approve this kind", func(m slacktest.Message) error {
		return c.click(d, m, "approve_kind", "Approve this kind for 30 minutes")
	})
	if err != nil {
		return err
	}
	if _, err := d.call(ctx, "wait_for_operation", `{"op":"`+pending.Structured.Op+`"}`, "succeeded"); err != nil {
		return err
	}

	d.step("The next one of the kind runs without a question")
	if _, err := d.call(ctx, "scale_deployment", `{"namespace":"shop","name":"web","replicas":30,"reason":"more load than expected"}`, "succeeded"); err != nil {
		return fmt.Errorf("%w: was Approve clicked in place of Approve this kind?", err)
	}
	if err := d.run(ctx, "grants", "list"); err != nil {
		return err
	}

	d.step("What is dangerous is asked about all the same; an operator rejects it and says why")
	const toNothing = `{"namespace":"shop","name":"web","replicas":0,"reason":"start afresh"}`
	if pending, err = d.call(ctx, "scale_deployment", toNothing, "pending_approval"); err != nil {
		return err
	}
	err = c.decide(d, pending.Structured.Op, "click Reject, and say why", func(m slacktest.Message) error {
		if err := c.click(d, m, "reject", "Reject"); err != nil {
			return err
		}
		return c.submit(d, "Reject", "the shop is open: restart the rollout instead")
	})
	if err != nil {
		return err
	}
	if _, err := d.call(ctx, "wait_for_operation", `{"op":"`+pending.Structured.Op+`"}`, "rejected"); err != nil {
		return err
	}
	d.step("The agent cannot nag: the same call is refused for five minutes")
	_, err = d.call(ctx, "scale_deployment", toNothing, "denied")
	return err
}

// decide shows the question and lets Bea act, and then shows the message and its
// thread; with a real Slack it says what to do.
func (c *chat) decide(d *demo, op, todo string, act func(slacktest.Message) error) error {
	if c.wire == nil {
		fmt.Fprintf(d.out, "   --> In Slack, in the channel %s, at the newest message: %s. It waits for 15 minutes.\n", c.channel, todo)
		return nil
	}
	var asked slacktest.Message
	find := func() bool {
		for _, m := range c.wire.Messages(c.channel) {
			if strings.Contains(string(m.Metadata), op) {
				asked = m
			}
		}
		return asked.TS != ""
	}
	if !c.wire.Await(30*time.Second, func() bool { return find() && c.wire.Connections() > 0 }) {
		return errors.New("nobody told Slack in 30 seconds")
	}
	fmt.Fprintln(d.out, "   In Slack, #approvals:")
	before := asked.Rendered()
	d.paste(before)
	if err := act(asked); err != nil {
		return err
	}
	// The message is written anew with each state; the thread gets the end.
	if !c.wire.Await(30*time.Second, func() bool { return find() && len(asked.Replies) > 0 }) {
		return errors.New("nobody told Slack the end in 30 seconds")
	}
	for _, version := range asked.Versions {
		if state, _, _ := strings.Cut(newLines(before, slacktest.Text(version.Blocks)), "\n"); state != "" {
			fmt.Fprintln(d.out, "   The message says for a moment:")
			d.paste(state)
		}
	}
	fmt.Fprintln(d.out, "   The message has no buttons any more, and says at the end:")
	d.paste(newLines(before, asked.Rendered()))
	for _, reply := range asked.Replies {
		fmt.Fprintln(d.out, "   In its thread:")
		d.paste(reply.Rendered())
	}
	return nil
}

// newLines are the lines that a text did not have before.
func newLines(before, now string) string {
	var out strings.Builder
	for line := range strings.Lines(now) {
		if !strings.Contains(before, strings.TrimSuffix(line, "\n")) {
			out.WriteString(line)
		}
	}
	return out.String()
}

// click presses a button as Bea.
func (c *chat) click(d *demo, m slacktest.Message, action, label string) error {
	fmt.Fprintf(d.out, "   Bea clicks [%s]\n", label)
	delivery, err := c.wire.Click(bea, m.Channel, m.TS, action)
	if err == nil && !delivery.Acked {
		err = errors.New("no acknowledgement reached Slack: " + delivery.Why)
	}
	return err
}

// submit sends the dialog that Bea has in front, with a reason.
func (c *chat) submit(d *demo, label, reason string) error {
	var view slacktest.View
	if !c.wire.Await(30*time.Second, func() (open bool) { view, open = c.wire.View(bea); return open }) {
		return errors.New("no dialog opened in 30 seconds")
	}
	fmt.Fprintln(d.out, "   A dialog opens:")
	d.paste(view.Rendered())
	fmt.Fprintf(d.out, "   Bea types %q and clicks [%s]\n", reason, label)
	delivery, err := c.wire.Submit(bea, view.ID, map[string]string{"reason": reason})
	if err == nil && !delivery.Acked {
		err = errors.New("no acknowledgement reached Slack: " + delivery.Why)
	}
	return err
}

// paste shows what stands in Slack, with a line at its left.
func (d *demo) paste(text string) {
	for line := range strings.Lines(strings.TrimRight(text, "\n")) {
		fmt.Fprintln(d.out, "   | "+strings.TrimSuffix(line, "\n"))
	}
}

// grantOf is what a record says of a grant, empty for most.
func grantOf(r rig.Record) string {
	var whole struct {
		Approval struct {
			Grant string   `json:"grant"`
			By    []string `json:"by"`
		} `json:"approval"`
	}
	if json.Unmarshal([]byte(r.Raw), &whole) != nil || whole.Approval.Grant == "" {
		return ""
	}
	return " grant " + whole.Approval.Grant + " of " + strings.Join(whole.Approval.By, ", ")
}

// tell says where questions are seen while the demo is kept running.
func (c *chat) tell(d *demo) {
	if c.wire == nil {
		fmt.Fprintf(d.out, "\nQuestions are asked in Slack, in the channel %s.\n", c.channel)
		return
	}
	fmt.Fprintf(d.out, `
Slack is a double. See what it shows, and click as Bea (review, approve, approve_kind, reject):
  curl -s %[1]smessages -d '{"channel":"%[2]s"}' | jq -r '.[] | .ts, .rendered, .replies[]?.text'
  curl -s %[1]sclick -d '{"user":"%[3]s","channel":"%[2]s","action":"approve","ts":"TS"}'
`, c.wire.ControlURL, c.channel, bea)
}
