(() => {
  const dialog = document.getElementById("detail");
  const outside = [...document.querySelectorAll("main *, dialog *")].filter((element) =>
    element.offsetParent && !element.closest("thead")
      && element.getBoundingClientRect().right > innerWidth + 1);
  return [document.documentElement.scrollWidth, innerWidth, dialog.open ? dialog.scrollWidth : 0,
    outside.slice(0, 5).map((element) => `${element.className} ${element.innerText}`)];
})()
