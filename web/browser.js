/* browser.js CHROMIUM PAGE HASH PROFILE: opens the page, reads the frames of the address, drags a dot, steps by keyboard, opens
   the address that this left, and prints what it saw, a word and a value on each line. Needs WebSocket: node 22, or 20 with
   --experimental-websocket. */
"use strict";
const {spawn} = require("child_process");
const [program, page, hash, profile] = process.argv.slice(2);
const sleep = ms => new Promise(done => setTimeout(done, ms));
const say = (word, value) => console.log(word, value);

async function connect(browser) { /* the browser tells its address on stderr */
    const address = await new Promise((done, failed) => {
        let text = "";
        browser.stderr.on("data", part => {
            text += part;
            const found = text.match(/ws:\/\/127\.0\.0\.1:(\d+)/);
            if (found) done(found[1]);
        });
        browser.on("exit", () => failed(new Error("the browser ended: " + text.slice(-400))));
    });
    const tabs = await (await fetch(`http://127.0.0.1:${address}/json`)).json();
    const socket = new WebSocket(tabs.find(t => t.type === "page").webSocketDebuggerUrl);
    await new Promise(done => { socket.onopen = done; });
    return socket;
}

async function main(browser) {
    const socket = await connect(browser), waiting = {}, errors = [], foreign = [];
    let count = 0;
    socket.onmessage = e => {
        const m = JSON.parse(e.data), p = m.params;
        if (m.id) waiting[m.id](m.result);
        else if (m.method === "Runtime.exceptionThrown") errors.push(p.exceptionDetails.text + (p.exceptionDetails.exception || {}).description);
        else if (m.method === "Log.entryAdded" && p.entry.level === "error") errors.push(p.entry.text);
        else if (m.method === "Network.requestWillBeSent" && !/^(file|data|blob|about):/.test(p.request.url)) foreign.push(p.request.url);
    };
    const send = (method, params = {}) => new Promise(done => {
        waiting[++count] = done;
        socket.send(JSON.stringify({id: count, method, params}));
    });
    const evaluate = async expression => ((await send("Runtime.evaluate", {expression, returnByValue: true})).result || {}).value;
    const until = async expression => {
        for (let i = 0; i < 600 && !await evaluate(expression); i++) await sleep(200);
        return evaluate(expression);
    };
    const open = async where => {
        await send("Page.navigate", {url: "about:blank"});
        await send("Page.navigate", {url: `file://${page}${where}`});
        return until("document.body && document.body.dataset.ready");
    };
    for (const domain of ["Page", "Runtime", "Log", "Network"]) await send(domain + ".enable");
    say("ready_ms", await open(hash));
    for (const name of ["plane", "quadratic", "race"]) say(name, await until(`document.body.dataset.${name}`));

    await open("");
    const [x, y] = await evaluate(`(r => [r.x + r.width / 2, r.y + r.height / 2])(document.querySelector('[data-i="16"]').getBoundingClientRect())`);
    const mouse = (type, dx, dy) => send("Input.dispatchMouseEvent", {type, x: x + dx, y: y + dy, button: "left", buttons: 1, clickCount: 1});
    await evaluate("scrollTo(0, 0)");
    await mouse("mousePressed", 0, 0), await mouse("mouseMoved", -60, 40), await mouse("mouseMoved", -90, 70), await mouse("mouseReleased", -90, 70);
    say("drags", await evaluate("labs.plane.drags.length / 4"));
    await evaluate("labs.plane.svg.focus()");
    for (const key of ["n", "ArrowLeft", "ArrowUp", " ", " "]) {
        await send("Input.dispatchKeyEvent", {type: "keyDown", key, text: key.length === 1 ? key : undefined});
        await send("Input.dispatchKeyEvent", {type: "keyUp", key});
    }
    say("drags_and_keys", await evaluate("`${labs.plane.drags.length / 4} ${labs.plane.state[1]}`"));
    const shown = await evaluate("document.body.dataset.plane");
    await open(await evaluate("address()"));
    say("link_again", (await evaluate("document.body.dataset.plane")) === shown ? "same" : "other");
    await send("Emulation.setDeviceMetricsOverride", {width: 390, height: 800, deviceScaleFactor: 1, mobile: true});
    say("phone_width", await evaluate("document.documentElement.scrollWidth"));
    say("errors", errors.length + " " + errors.join(" "));
    say("foreign", foreign.length + " " + foreign.join(" "));
}

const browser = spawn(program, ["--headless", "--no-sandbox", "--disable-gpu", "--window-size=1100,1600", "--user-data-dir=" + profile,
    "--remote-debugging-port=0", "about:blank"], {stdio: ["ignore", "ignore", "pipe"]});
main(browser).catch(e => { say("failed", e.message); process.exitCode = 1; }).finally(() => { browser.kill(); setTimeout(process.exit, 500); });
