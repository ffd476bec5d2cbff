package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"os/user"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/rogpeppe/go-internal/testscript"

	"countersign/approvals/slack/slacktest"
	"countersign/e2e/rig"
)

// slackPeople are in every Slack of these tests: bea, carl and dora are in the
// group of the approver set operators, fred is in none.
var slackPeople = map[string]slacktest.User{
	"bea":  {ID: "UBEA00001", Name: "bea", RealName: "Bea Example", Email: "bea@example.com"},
	"carl": {ID: "UCARL0001", Name: "carl", RealName: "Carl Example", Email: "carl@example.com"},
	"dora": {ID: "UDORA0001", Name: "dora", RealName: "Dora Example", Email: "dora@example.com"},
	"fred": {ID: "UFRED0001", Name: "fred", RealName: "Fred Example", Email: "fred@example.com"},
}

const (
	slackChannel = "CAPPROVE1"
	slackGroup   = "SOPERATE1"
)

// newSlack starts a Slack and makes the server of the configuration in dir ask
// there too. more is what follows in the section slack of the configuration.
func newSlack(dir string, server *rig.Server, more string) (*slacktest.Server, error) {
	wire, err := slacktest.Start("127.0.0.1:0")
	if err != nil {
		return nil, err
	}
	wire.AddChannel(slacktest.Channel{ID: slackChannel})
	for _, user := range slackPeople {
		wire.AddUser(user)
	}
	wire.SetGroup(slackGroup, slackPeople["bea"].ID, slackPeople["carl"].ID, slackPeople["dora"].ID)
	text, err := os.ReadFile(server.Config)
	if err != nil {
		return nil, err
	}
	config := strings.Replace(string(text), `approvers: {operators: {local: ["*"]}}`,
		fmt.Sprintf(`approvers: {operators: {local: ["*"], slackGroups: [%s]}}`, slackGroup), 1)
	config += fmt.Sprintf("slack: {botTokenFile: slack-bot, appTokenFile: slack-app, channel: %s, apiURL: %q%s}\n", slackChannel, wire.URL, more)
	return wire, rig.WriteFiles(dir, map[string]string{
		filepath.Base(server.Config): config, "slack-bot": wire.BotToken, "slack-app": wire.AppToken, "slack-signing": wire.SigningSecret,
	})
}

// about is the message that asks about an operation, in any channel or direct
// message of these tests.
func about(messages []slacktest.Message, op string) (slacktest.Message, bool) {
	for _, m := range messages {
		if strings.Contains(string(m.Metadata), op) {
			return m, true
		}
	}
	return slacktest.Message{}, false
}

// waitAbout waits until the message about an operation says what it should.
func waitAbout(wire *slacktest.Server, op, want string, channels ...string) (slacktest.Message, error) {
	re, err := regexp.Compile(want)
	if err != nil {
		return slacktest.Message{}, err
	}
	var m slacktest.Message
	var there bool
	if !wire.Await(time.Minute, func() bool {
		for _, channel := range append([]string{slackChannel}, channels...) {
			if m, there = about(wire.Messages(channel), op); there {
				break
			}
		}
		return there && re.MatchString(m.Rendered())
	}) {
		return m, fmt.Errorf("the message about %s never said %s:\n%s", op, want, m.Rendered())
	}
	return m, nil
}

// slackScript is what the commands about Slack of one script share beside script.
type slackScript struct {
	issuer   *rig.Issuer
	channels []string // those that the script added
	down     bool
}

type slackKey struct{}

// TestSlack runs the scripts below testdata/slack: the real server, the real API
// server and the wire of Slack.
func TestSlack(t *testing.T) {
	issuer, err := rig.StartIssuer()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { issuer.Close() })
	params := scripts("testdata/slack")
	setup := params.Setup
	params.Setup = func(env *testscript.Env) error {
		if err := setup(env); err != nil {
			return err
		}
		s := env.Values[scriptKey{}].(*script)
		// Most scripts scale, and need no pods for it.
		_, err := world.cluster.Run(context.Background(), "", "create", "quota", "few", "--hard=pods=3", "-n", env.Getenv("NS"))
		if err != nil {
			return err
		}
		if s.slack, err = newSlack(env.WorkDir, s.server, ""); err != nil {
			return err
		}
		env.Values[slackKey{}] = &slackScript{issuer: issuer}
		me, err := user.Current()
		if err != nil {
			return err
		}
		env.Setenv("ME", me.Username)
		env.Setenv("ISSUER", issuer.URL)
		env.Setenv("CHANNEL", slackChannel)
		env.Setenv("GROUP", slackGroup)
		for name, user := range slackPeople {
			env.Setenv(strings.ToUpper(name), user.ID)
		}
		env.Defer(s.slack.Close)
		return nil
	}
	params.Cmds["slack"] = slackCommand
	params.Cmds["config"] = configCommand
	params.Cmds["login"] = loginCommand
	params.Cmds["burst"] = burstCommand
	params.Cmds["grant"] = grantCommand
	testscript.Run(t, params)
}

// config OLD NEW: puts NEW in the place of OLD in the server's configuration; with
// + for OLD, at its end.
func configCommand(ts *testscript.TestScript, _ bool, args []string) {
	path := ts.Value(scriptKey{}).(*script).server.Config
	text, err := os.ReadFile(path)
	ts.Check(err)
	if args[0] == "+" {
		ts.Check(os.WriteFile(path, append(text, args[1]+"\n"...), 0o600))
		return
	}
	if strings.Count(string(text), args[0]) != 1 {
		ts.Fatalf("%q is not once in:\n%s", args[0], text)
	}
	ts.Check(os.WriteFile(path, []byte(strings.Replace(string(text), args[0], args[1], 1)), 0o600))
}

// login NAME CLAIMS: gives the agent NAME a token of the issuer $ISSUER with these claims.
func loginCommand(ts *testscript.TestScript, _ bool, args []string) {
	claims := map[string]any{"aud": audience}
	ts.Check(json.Unmarshal([]byte(args[1]), &claims))
	token, err := ts.Value(slackKey{}).(*slackScript).issuer.Token(claims)
	ts.Check(err)
	s := ts.Value(scriptKey{}).(*script)
	s.agents[args[0]] = &rig.Agent{URL: s.server.URL, Token: token}
}

// grant: makes $GRANT the id of the only grant that holds.
func grantCommand(ts *testscript.TestScript, _ bool, _ []string) {
	text, err := ts.Value(scriptKey{}).(*script).server.Run(context.Background(), "grants", "list", "-o", "json")
	ts.Check(err)
	var grants []struct{ ID string }
	ts.Check(json.Unmarshal([]byte(text), &grants))
	if len(grants) != 1 {
		ts.Fatalf("there are %d grants:\n%s", len(grants), text)
	}
	ts.Setenv("GRANT", grants[0].ID)
}

// burst N TOOL JSON: calls a tool N times as oncall, with the number of the call for
// each # in JSON, and prints how many answers had each status, and the last reason.
func burstCommand(ts *testscript.TestScript, _ bool, args []string) {
	s := ts.Value(scriptKey{}).(*script)
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	agent := s.agents["oncall"]
	if agent.Session == "" {
		ts.Check(agent.Connect(ctx))
	}
	n, err := strconv.Atoi(args[0])
	ts.Check(err)
	count, last := map[string]int{}, ""
	for i := range n {
		answer, err := agent.Call(ctx, args[1], strings.ReplaceAll(args[2], "#", strconv.Itoa(i)))
		ts.Check(err)
		count[answer.Structured.Status]++
		last = answer.Structured.Reason
	}
	for _, status := range slices.Sorted(maps.Keys(count)) {
		fmt.Fprintf(ts.Stdout(), "%s: %d\n", status, count[status])
	}
	fmt.Fprintln(ts.Stdout(), "last reason:", last)
}

// slack message|thread|text [OP] [REGEXP]: prints the message about $OP, its replies
// or what notifications show of it, as soon as it says REGEXP.
// slack in CHANNEL [OP] [REGEXP]: prints the message if it is in this channel.
// slack direct|ephemeral|view USER [REGEXP]: prints what one person sees.
// With ! none of these must say REGEXP now.
// slack click USER BUTTON [OP] [WORD...]: clicks a button of the message; with !
// there must be no such button. The words change how it is delivered: twice,
// again, forged, old, team, app, leaving (the account is deactivated before the
// server is told), late=DURATION, version=N, as=BUTTON (that the message lacks).
// slack race BUTTON OP USER...: makes these people click at the same time.
// slack press USER BUTTON: clicks a button of the dialog that USER has open.
// slack submit USER [FIELD=TEXT...] [page=N]: sends it, as if from another page.
// slack user USER KEY[=TEXT]...: makes a person deleted, guest, bot, stranger,
// unconfirmed, or gives name, email, team.
// slack group USER...: makes these the user group of the operators.
// slack channel ID [archived|without]: adds a channel, or changes it.
// slack delete [OP]: deletes the message.
// slack signed: sends what people do as signed requests.
// slack connected: waits until the server has a Socket Mode connection.
// slack fail METHOD N HOW: makes calls go wrong: 500, hang, cut, lost (done, but
// not answered), limit=SECONDS, error=NAME. slack down|up|mend.
// slack count METHOD [N]: prints how often a method was called, once it is N times.
func slackCommand(ts *testscript.TestScript, neg bool, args []string) {
	wire := ts.Value(scriptKey{}).(*script).slack
	own := ts.Value(slackKey{}).(*slackScript)
	channels := append([]string{slackChannel}, own.channels...)
	user := func(name string) string {
		if u, ok := slackPeople[name]; ok {
			return u.ID
		}
		return name
	}
	arg := func(i int, otherwise string) string {
		if i < len(args) {
			return args[i]
		}
		return otherwise
	}
	find := func(op string) (slacktest.Message, bool) {
		for _, channel := range channels {
			if m, ok := about(wire.Messages(channel), op); ok {
				return m, true
			}
		}
		return slacktest.Message{}, false
	}
	var err error
	// shown prints a text as soon as it says what it should.
	shown := func(want string, text func() string) {
		re, reErr := regexp.Compile(want)
		ts.Check(reErr)
		var last string
		if neg {
			if last = text(); last == "" || !re.MatchString(last) {
				err = errors.New("nothing of the kind is shown")
			}
			fmt.Fprintln(ts.Stdout(), last)
			return
		}
		ok := wire.Await(time.Minute, func() bool {
			last = text()
			return last != "" && re.MatchString(last)
		})
		fmt.Fprintln(ts.Stdout(), last)
		if !ok {
			ts.Fatalf("%s never said %s", strings.Join(args, " "), want)
		}
	}
	switch args[0] {
	case "message":
		shown(arg(2, ""), func() string {
			if m, ok := find(arg(1, ts.Getenv("OP"))); ok {
				return m.Rendered()
			}
			return ""
		})
	case "text":
		shown(arg(2, ""), func() string {
			m, _ := find(arg(1, ts.Getenv("OP")))
			return m.Text
		})
	case "in":
		shown(arg(3, ""), func() string {
			if m, ok := about(wire.Messages(args[1]), arg(2, ts.Getenv("OP"))); ok {
				return m.Rendered()
			}
			return ""
		})
	case "thread":
		shown(arg(2, ""), func() string {
			m, _ := find(arg(1, ts.Getenv("OP")))
			var all strings.Builder
			for _, r := range m.Replies {
				all.WriteString(r.Rendered() + "\n")
			}
			return all.String()
		})
	case "direct":
		shown(arg(2, ""), func() string {
			var all strings.Builder
			for _, m := range wire.DMs(user(args[1])) {
				all.WriteString(m.Rendered() + "\n")
			}
			return all.String()
		})
	case "ephemeral":
		shown(arg(2, ""), func() string {
			var all strings.Builder
			for _, channel := range channels {
				for _, m := range wire.Ephemerals(channel, user(args[1])) {
					all.WriteString(m.Rendered() + "\n")
				}
			}
			return all.String()
		})
	case "view":
		shown(arg(2, ""), func() string {
			if v, open := wire.View(user(args[1])); open {
				return v.Rendered()
			}
			return ""
		})
	case "click":
		var options []slacktest.Option
		for _, word := range args[min(4, len(args)):] {
			name, value, _ := strings.Cut(word, "=")
			switch name {
			case "twice":
				options = append(options, slacktest.Twice())
			case "again":
				options = append(options, slacktest.Again())
			case "forged":
				options = append(options, slacktest.WrongSignature())
			case "old":
				options = append(options, slacktest.Stale(10*time.Minute))
			case "team":
				options = append(options, slacktest.FromTeam("TOTHER001"))
			case "app":
				options = append(options, slacktest.FromApp("AOTHER001"))
			case "leaving":
				options = append(options, slacktest.Edited(func(map[string]any) {
					u := slackPeople[args[1]]
					u.Deleted = true
					wire.AddUser(u)
				}))
			case "as":
				options = append(options, slacktest.Edited(func(p map[string]any) {
					p["actions"].([]any)[0].(map[string]any)["action_id"] = value
				}))
			case "late":
				d, err := time.ParseDuration(value)
				ts.Check(err)
				options = append(options, slacktest.Delayed(d))
			case "version":
				n, err := strconv.Atoi(value)
				ts.Check(err)
				options = append(options, slacktest.Version(n))
			default:
				ts.Fatalf("slack click: %q", word)
			}
		}
		var m slacktest.Message
		wire.Await(time.Minute, func() bool { return own.down || wire.Connections() > 0 || ts.Getenv("SIGNED") != "" })
		m, err = waitAbout(wire, arg(3, ts.Getenv("OP")), "", own.channels...)
		ts.Check(err)
		var d *slacktest.Delivery
		if d, err = wire.Click(user(args[1]), m.Channel, m.TS, args[2], options...); err == nil {
			for _, d := range append([]*slacktest.Delivery{d}, d.Repeat...) {
				fmt.Fprintf(ts.Stdout(), "acknowledged: %v %s %s\n", d.Acked, d.Saw, d.Why)
			}
		}
	case "race":
		m, findErr := waitAbout(wire, args[2], "", own.channels...)
		ts.Check(findErr)
		wire.Await(time.Minute, func() bool { return own.down || wire.Connections() > 0 || ts.Getenv("SIGNED") != "" })
		var all sync.WaitGroup
		failed := make(chan error, len(args))
		for _, name := range args[3:] {
			all.Go(func() {
				_, err := wire.Click(user(name), m.Channel, m.TS, args[1])
				failed <- err
			})
		}
		all.Wait()
		for range args[3:] {
			ts.Check(<-failed)
		}
	case "press", "submit":
		var v slacktest.View
		if !wire.Await(time.Minute, func() (open bool) { v, open = wire.View(user(args[1])); return open }) {
			ts.Fatalf("%s has no dialog open", args[1])
		}
		var d *slacktest.Delivery
		if args[0] == "press" {
			d, err = wire.ViewClick(user(args[1]), v.ID, args[2])
		} else {
			values := map[string]string{}
			var options []slacktest.Option
			for _, field := range args[2:] {
				name, value, _ := strings.Cut(field, "=")
				if name != "page" {
					values[name] = value
					continue
				}
				options = append(options, slacktest.Edited(func(p map[string]any) {
					view := p["view"].(map[string]any)
					view["private_metadata"] = pageForm.ReplaceAllString(view["private_metadata"].(string), `"page":`+value)
				}))
			}
			d, err = wire.Submit(user(args[1]), v.ID, values, options...)
		}
		if err == nil {
			fmt.Fprintf(ts.Stdout(), "acknowledged: %v %s %s\n", d.Acked, d.Saw, d.Why)
		}
	case "user":
		u := slackPeople[args[1]]
		if u.ID == "" {
			u.ID = args[1]
		}
		for _, word := range args[2:] {
			name, value, _ := strings.Cut(word, "=")
			switch name {
			case "deleted":
				u.Deleted = true
			case "guest":
				u.IsRestricted = true
			case "bot":
				u.IsBot = true
			case "stranger":
				u.IsStranger = true
			case "unconfirmed":
				u.EmailUnconfirmed = true
			case "name":
				u.RealName, err = strconv.Unquote(`"` + value + `"`)
				ts.Check(err)
			case "email":
				u.Email = value
			case "team":
				u.TeamID = value
			default:
				ts.Fatalf("slack user: %q", word)
			}
		}
		wire.AddUser(u)
	case "group":
		var ids []string
		for _, name := range args[1:] {
			ids = append(ids, user(name))
		}
		wire.SetGroup(slackGroup, ids...)
	case "fail":
		n, atoiErr := strconv.Atoi(args[2])
		ts.Check(atoiErr)
		name, value, _ := strings.Cut(args[3], "=")
		var how slacktest.Trouble
		switch name {
		case "500":
			how.Status = 500
		case "hang":
			how.Hang = true
		case "cut":
			how.Cut = true
		case "lost":
			how.Cut, how.Done = true, true
		case "limit":
			how.RetryAfter, atoiErr = strconv.Atoi(value)
			ts.Check(atoiErr)
		case "error":
			how.Error = value
		default:
			ts.Fatalf("slack fail: %q", args[3])
		}
		wire.Fail(args[1], n, how)
	case "channel":
		c := slacktest.Channel{ID: args[1], Archived: arg(2, "") == "archived", Without: arg(2, "") == "without"}
		wire.AddChannel(c)
		if !slices.Contains(channels, c.ID) {
			own.channels = append(own.channels, c.ID)
		}
	case "delete":
		var m slacktest.Message
		m, err = waitAbout(wire, arg(1, ts.Getenv("OP")), "", own.channels...)
		ts.Check(err)
		wire.Delete(m.Channel, m.TS)
	case "signed":
		wire.SetInteractions(strings.Replace(ts.Getenv("URL"), "/mcp", "/slack/interactions", 1))
		ts.Setenv("SIGNED", "yes")
	case "connected":
		if !wire.Await(time.Minute, func() bool { return wire.Connections() > 0 }) {
			ts.Fatalf("the server never connected")
		}
	case "mend":
		wire.Mend()
	case "down", "up":
		own.down = args[0] == "down"
		wire.Down(own.down)
	case "count":
		if n, atoiErr := strconv.Atoi(arg(2, "")); atoiErr == nil {
			wire.Await(time.Minute, func() bool { return len(wire.Calls(args[1])) >= n })
		}
		fmt.Fprintln(ts.Stdout(), len(wire.Calls(args[1])))
	default:
		ts.Fatalf("slack: %q", args[0])
	}
	if err != nil {
		fmt.Fprintln(ts.Stderr(), err)
	}
	if (err != nil) != neg {
		ts.Fatalf("slack %s: %v", strings.Join(args, " "), err)
	}
}

var pageForm = regexp.MustCompile(`"page":[0-9]+`)
